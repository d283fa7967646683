"""What a row of an op is made of: its arguments, its check, what it moves and computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_cases.head import Head
from lip_fast.bench.gates import distance

__all__ = ["FAILED", "SETTLED", "Problem", "factors", "narrowed", "nothing", "product_bound", "unorthogonal"]

# The measure of a result that says itself that it cannot be used.
FAILED = float("inf")
# What a settled update or product is multiplied by: below the rounding of a weight, the stochastic one of
# narrow formats too, whose bits are the same in each call of one step.
SETTLED = 1e-9
# Distance of products from float64. In float32 on a CPU they are up to 4e-7 off; on a GPU a weight that is
# read once is rounded to TF32, and they are 4e-4 off. With a factor in bfloat16 they are 1.7e-3 off, in
# float64 with one in float32 3e-8.
_PRODUCT, _TF32_PRODUCT, _PRODUCT64 = 1e-5, 8e-4, 1e-12


def nothing() -> None:
    """Where calls need not be made harmless."""


@dataclass(frozen=True)
class Problem:
    """One op with its arguments.

    Attributes:
        call: the public function, with its arguments.
        arguments: of a kernel of the op.
        measure: of what a call returned and wrote: how far it is from float64.
        bound: of the measure.
        control: the measure of a plausible wrong answer.
        size: bytes that must be read and written.
        flops: additions and multiplications that must be done.
        written: what the op changes, each beside what it held before.
        library: the same by torch.linalg.
        step: what the op draws signs for; None where it draws none.
        settle: makes the effect of further calls so small that thousands of them leave a weight as it is.
    """

    call: Callable[[], Any]
    arguments: tuple[Any, ...]
    measure: Callable[[Any], float]
    bound: float
    control: float
    size: float
    flops: float = 0
    written: Sequence[tuple[Tensor, Tensor]] = ()
    library: Callable[[], Any] | None = None
    step: Tensor | None = None
    settle: Callable[[], object] = nothing


def narrowed(X: Tensor) -> Tensor:
    """In the next narrower format: a wrong answer where a product should keep its digits."""
    return X.bfloat16() if X.dtype == torch.float32 else X.float()


def product_bound(head: Head) -> float:
    """How far a product may be from float64."""
    if head.skinny == torch.float64:
        return _PRODUCT64
    return _TF32_PRODUCT if head.device.type == "cuda" else _PRODUCT


def unorthogonal(Q: Tensor) -> float:
    """||Q^T Q - I|| over ||I||."""
    Q = Q.double()
    identity = torch.eye(Q.shape[1], dtype=torch.float64, device=Q.device)
    return distance(Q.mT @ Q, identity)


def factors(A: Tensor, S: Tensor, B: Tensor, X: Tensor) -> Tensor:
    """A diag(S) B^T X in float64."""
    return A.double() @ (S.double()[:, None] * (B.double().mT @ X))
