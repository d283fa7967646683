"""A step of LIP on a host in one call: what four ops do one after another.

Not ops themselves: nothing traces them, and the checks and results of four ops cost more than a small step.
What they are given was checked where it was observed, and where the weight was looked up.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.backends.native.library import fits_at_once, wide_vectors
from lip_fast.ops.tail_svd import SMALL_SIDE
from lip_fast.refitting import Refitting
from lip_fast.targets import CSR, Targets

__all__ = ["EXACT", "PROJECTED", "TRUNCATED", "Step", "exact_step_", "projected_step_", "truncated_step_"]

TRUNCATED = Kernel("native.at_once:truncated_step_", "cpu")
PROJECTED = Kernel("native.at_once:projected_step_", "cpu")
EXACT = Kernel("native.at_once:exact_step_", "cpu")


class Step(NamedTuple):
    """What a step did that wrote the weight."""

    basis: Tensor | None
    """(q, t) of the next step; None where it takes none."""
    clipped: int
    masked: int
    told: tuple[float, float] | None = None
    """gamma and ``deeper`` of :class:`lip_fast.projected.Split`, of a step by products."""

    @property
    def ok(self) -> bool:
        """As of other reports of a step: what is not so is not taken in one call."""
        return True


def truncated_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    Y: Targets,
    bias: Tensor | None,
    how: Refitting,
    *,
    fresh: int,
    step: Tensor,
    seed: int,
) -> Step | None:
    """:func:`warm_svd`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        basis: (q, t) of the last step.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of the t directions that are followed, and of deeper ones.
        fresh: number of fresh columns.
        step: () int64, their counter.
        seed: their key.

    Returns:
        None where nothing was written: the operands are not those of one call (float32 on a host, rows
        contiguous, class indices, up to 64 columns), or there is a reason against the step.
    """
    y = _indices(M, X, Y, bias)
    if (
        y is None
        or not _serves("warm_svd", "at_once")
        or basis.dtype != torch.float32
        or not fits_at_once(basis.shape[1], fresh)
    ):
        return None
    basis = basis.contiguous()
    following = torch.empty_like(basis)
    taken = TRUNCATED.run(M, basis, X, y, bias, following, how, fresh, int(step), seed)
    _, applied, clipped, masked = taken
    return Step(following, clipped, masked) if applied else None


def projected_step_(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    Y: Targets,
    bias: Tensor | None,
    how: Refitting,
    *,
    guards: int,
    fresh: int,
    step: Tensor,
    seed: int,
    most_removed: float,
) -> Step | None:
    """:func:`lip_fast.projected.split`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        basis: (q, k + r) of the last step.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of its directions, of which k are kept.
        guards: number of kept directions that are decomposed with the tail.
        fresh: number of fresh columns at most.
        step: () int64, their counter.
        seed: their key.
        most_removed: share of ||M||_F^2 beyond which nothing is removed, and nothing written.

    Returns:
        None where nothing was written: see :func:`truncated_step_`; more directions than guards are kept.
    """
    y = _indices(M, X, Y, bias)
    if (
        y is None
        or how.rank <= guards
        or not _serves("warm_svd", "at_once")
        or basis.dtype != torch.float32
        or not wide_vectors()
    ):
        return None
    if not basis.mT.is_contiguous():
        basis = basis.mT.contiguous().mT
    following = torch.empty_like(basis)
    fresh = min(fresh, min(M.shape) - basis.shape[1])
    taken = PROJECTED.run(
        M, basis, X, y, bias, following, how, guards, fresh, int(step), seed, most_removed
    )
    _, applied, clipped, masked, gamma, deeper = taken
    return Step(following, clipped, masked, (gamma, deeper)) if applied else None


def exact_step_(
    M: Tensor, X: Tensor, Y: Targets, bias: Tensor | None, how: Refitting, *, tail: int
) -> Step | None:
    """:func:`tail_svd`, :func:`label_sums`, :func:`refit` and :func:`rebuild_` of a weight.

    Args:
        M: (l, q) the weight.
        X: (n, q) features.
        Y: their checked labels.
        bias: (l,) of the classifier, or None.
        how: what becomes of its directions.
        tail: number of directions refitted below those kept.

    Returns:
        None where nothing was written: see :func:`truncated_step_`; the small side is of at most 24.
    """
    y = _indices(M, X, Y, bias)
    if y is None or min(M.shape) > SMALL_SIDE or not _serves("tail_svd", "tail_svd"):
        return None
    _, applied, clipped, masked = EXACT.run(M, X, y, bias, how, tail)
    return Step(None, clipped, masked) if applied else None


def _indices(M: Tensor, X: Tensor, Y: Targets, bias: Tensor | None) -> Tensor | None:
    """Labels that are class indices; None of others, and of operands that one call does not take."""
    if isinstance(Y, CSR) or Y.dim() != 1 or not M.dtype == X.dtype == torch.float32:
        return None
    there = M.device.type == "cpu" and M.stride(1) == 1
    return Y if there and (bias is None or bias.dtype == torch.float32) else None


@cache
def _serves(op: str, file: str) -> bool:
    """Whether the kernels that a step consists of are those that serve its decomposition on a host."""
    return [candidate.kernel.file for candidate in backends.candidates(op, "cpu")] == [file]
