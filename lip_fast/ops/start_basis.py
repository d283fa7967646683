"""The columns of a power step whose products are taken elsewhere, as by the update of the weight."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel, never
from lip_fast.backends.native.library import MAX_COLUMNS
from lip_fast.ops.checks import COMPUTED, SEEDS, bad_step, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["start_basis"]


def _check(basis: Tensor, step: Tensor, fresh: int, seed: int) -> None:
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS or step.device != basis.device:
        raise bad_step(step, seed, "the basis", basis.device)
    if basis.dim() != 2 or basis.dtype not in COMPUTED:
        raise not_a_matrix("basis", basis, COMPUTED)
    q, t = basis.shape
    if fresh < 1 or t + fresh > q:
        raise expected(
            f"at least one fresh column and at most {q} columns in all",
            f"{t} columns of the basis and {fresh} fresh ones",
        )


def _outputs(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    q, t = basis.shape
    return basis.new_empty(t + fresh, q).mT


def _can_native(basis: Tensor, step: Tensor, fresh: int, seed: int) -> bool:
    return basis.dtype == torch.float32 and 1 <= basis.shape[1] <= MAX_COLUMNS - fresh


_OP = Op(
    "start_basis(Tensor basis, Tensor step, int fresh, int seed) -> Tensor",
    check=_check,
    outputs=_outputs,
    default="default.svd:start_basis",
    kernels=(
        Kernel(
            "native.svd:start_basis",
            "cpu",
            can=_can_native,
            pays=never,
            reason="the step on CPU is one of the library",
        ),
        Kernel("native.svd:start_basis", "cuda", can=_can_native, reason="does not wait for the device"),
    ),
)


def start_basis(basis: Tensor, step: Tensor, *, fresh: int, seed: int) -> Tensor:
    """The columns V that a warm-started power step multiplies M by: the last basis, and fresh columns.

    Args:
        basis: (q, t) float32 or float64: B of the last step.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= q.
        seed: key of the fresh columns.

    Returns:
        V (q, t + fresh), its columns contiguous, in the dtype of ``basis``.
    """
    V: Tensor = _OP(basis, step, fresh, seed)
    return V
