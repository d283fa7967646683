"""A truncated decomposition by one warm-started power step."""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel, never
from lip_fast.backends.native.library import MAX_COLUMNS
from lip_fast.ops.checks import COMPUTED, SEEDS, bad_step, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["SVD", "warm_svd"]


class SVD(NamedTuple):
    """M ~ A diag(S) B^T, and why it cannot be used, as bits of :mod:`lip_fast.status`: 0 where it can."""

    A: Tensor
    S: Tensor
    B: Tensor
    status: Tensor


def _check(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int) -> None:
    if step.dtype != torch.int64 or step.dim() or seed not in SEEDS or step.device != M.device:
        raise bad_step(step, seed, "M", M.device)
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if basis.dim() != 2 or basis.dtype not in COMPUTED:
        raise not_a_matrix("basis", basis, COMPUTED)
    l, q = M.shape
    rows, t = basis.shape
    if rows != q:
        raise expected(f"a basis with {q} rows (the columns of M)", basis)
    if basis.device != M.device:
        raise elsewhere("a basis", basis, "M", M.device)
    if fresh < 1 or t + fresh > l or t + fresh > q:
        raise expected(
            f"at least one fresh column and at most {min(l, q)} columns in all",
            f"{t} columns of the basis and {fresh} fresh ones",
        )


def _outputs(
    M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (l, q), t = M.shape, basis.shape[1]
    status = M.new_empty((), dtype=torch.int64)
    return basis.new_empty(l, t), basis.new_empty(t), basis.new_empty(t, q).mT, status


def _can_native(M: Tensor, basis: Tensor, step: Tensor, fresh: int, seed: int) -> bool:
    t = basis.shape[1]
    return basis.dtype == torch.float32 and M.dtype != torch.float64 and 1 <= t <= MAX_COLUMNS - fresh


_OP = Op(
    "warm_svd(Tensor M, Tensor basis, Tensor step, int fresh, int seed) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.svd:warm_svd",
    kernels=(
        Kernel(
            "native.svd:warm_svd", "cpu", can=_can_native, pays=never, reason="BLAS and LAPACK are faster"
        ),
        Kernel(
            "native.svd:warm_svd",
            "cuda",
            can=_can_native,
            reason=f"does not wait for the device, up to {MAX_COLUMNS} columns",
        ),
    ),
)


def warm_svd(M: Tensor, basis: Tensor, step: Tensor, *, fresh: int, seed: int) -> SVD:
    """Top singular triplets of a slowly changing matrix, by one power step from the last basis.

    With V = [basis, fresh random signs]: Y = M V = Q R, Z = M^T Q = P T, T = U S V_T^T, A = Q V_T, B = P U.
    One step an update keeps the truncation error within 1e-3 of the optimum; the fresh columns find
    directions that the basis is blind to.

    Args:
        M: (l, q) floating point.
        basis: (q, t) float32 or float64: B of the last step. Its span matters, not its order.
        step: () int64, counter of the fresh columns.
        fresh: number of fresh columns, at least 1; t + fresh <= min(l, q).
        seed: key of the fresh columns.

    Returns:
        A (l, t), S (t,) descending and B (q, t), its columns contiguous, in the dtype of ``basis``; status
        () int64, not 0 where M is not finite, the small decomposition failed, or ``max |B^T B - I|`` > 1e-4:
        the factors are then not to be used.
    """
    return SVD(*_OP(M, basis, step, fresh, seed))
