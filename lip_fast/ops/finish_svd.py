"""The end of a power step whose products were taken elsewhere, as by the update of the weight."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel, never
from lip_fast.backends.native.library import MAX_COLUMNS
from lip_fast.ops.checks import COMPUTED, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op
from lip_fast.ops.warm_svd import SVD

__all__ = ["finish_svd"]


def _check(Y: Tensor, Z: Tensor, rank: int) -> None:
    if Y.dim() != 2 or Y.dtype not in COMPUTED:
        raise not_a_matrix("Y", Y, COMPUTED)
    if Z.dim() != 2 or Z.dtype != Y.dtype:
        raise not_a_matrix("Z", Z, (Y.dtype,))
    if Z.device != Y.device:
        raise elsewhere("Z", Z, "Y", Y.device)
    (l, m), (q, columns) = Y.shape, Z.shape
    if columns != m:
        raise expected(f"Z with {m} columns, as many as Y", Z)
    if m > l or m > q:
        raise expected(f"at most {min(l, q)} columns", m)
    if not 0 <= rank <= m:
        raise expected(f"rank in 0..{m}", rank)


def _outputs(Y: Tensor, Z: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    status = Y.new_empty((), dtype=torch.int64)
    return Y.new_empty(len(Y), rank), Y.new_empty(rank), Y.new_empty(rank, len(Z)).mT, status


def _can_native(Y: Tensor, Z: Tensor, rank: int) -> bool:
    return Y.dtype == torch.float32 and rank >= 1 and Y.shape[1] <= MAX_COLUMNS


_OP = Op(
    "finish_svd(Tensor Y, Tensor Z, int rank) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.svd:finish_svd",
    kernels=(
        Kernel(
            "native.svd:finish_svd", "cpu", can=_can_native, pays=never, reason="BLAS and LAPACK are faster"
        ),
        Kernel(
            "native.svd:finish_svd",
            "cuda",
            can=_can_native,
            reason=f"does not wait for the device, up to {MAX_COLUMNS} columns",
        ),
    ),
)


def finish_svd(Y: Tensor, Z: Tensor, *, rank: int) -> SVD:
    """Top singular triplets of M from Y = M V and Z = M^T Y: Rayleigh-Ritz on the span of Y.

    With Y = Q R: M^T Q = Z R^-1 = P T, T = U S V_T^T, A = Q V_T, B = P U; M itself is not needed.

    Args:
        Y: (l, m) float32 or float64, m <= min(l, q).
        Z: (q, m) in the dtype of ``Y``.
        rank: number of triplets, 0..m.

    Returns:
        As :func:`warm_svd`: A (l, rank), S (rank,) descending, B (q, rank) and status ().
    """
    return SVD(*_OP(Y, Z, rank))
