"""Checks that come before any timing: a fast wrong answer is not a result.

Every check carries a control: the same measure of a plausible wrong answer (no repair at all, a basis one
step old). It must lie above the bound, or the check could not have failed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gate", "distance", "excess", "values"]


@dataclass(frozen=True)
class Gate:
    """One check against ``lip_fast.reference`` in float64.

    Args:
        name: what is measured.
        value: the measure of the result.
        bound: what it may be at most.
        control: the measure of a wrong answer.
    """

    name: str
    value: float
    bound: float
    control: float

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound and that of the wrong answer is not; NaN counts as failed."""
        return self.value <= self.bound < self.control


def distance(result: Tensor, expected: Tensor) -> float:
    """Relative Frobenius distance."""
    return float((result.double() - expected).norm() / expected.norm())


def excess(result: Tensor, M: Tensor, rank: int) -> float:
    """How much worse than the optimum of this rank the subspaces of ``result`` represent ``M``.

    ||M - P M Q|| over its minimum, less one: P and Q project on the top ``rank`` left and right singular
    vectors of ``result``, which is what a truncated step kept of ``M`` before it changed the values.
    """
    M = M.double()
    A, _, Bh = torch.linalg.svd(result.double(), full_matrices=False)
    A, Bh = A[:, :rank], Bh[:rank]
    left = (M - A @ (A.mT @ M @ Bh.mT) @ Bh).norm()
    return float(left / torch.linalg.svdvals(M)[rank:].norm()) - 1


def values(result: Tensor, expected: Tensor) -> float:
    """Largest difference of singular values, relative to the largest expected one."""
    got, want = torch.linalg.svdvals(result.double()), torch.linalg.svdvals(expected)
    return float((got - want).abs().max() / want[0])
