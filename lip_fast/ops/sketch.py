"""Both products of a power step."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.ops.checks import COMPUTED, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["check_sketch", "sketch"]


def check_sketch(M: Tensor, V: Tensor) -> None:
    """Refuse columns V that do not fit the weight."""
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if V.dim() != 2 or V.dtype not in COMPUTED:
        raise not_a_matrix("V", V, COMPUTED)
    if V.shape[0] != M.shape[1]:
        raise expected(f"V with {M.shape[1]} rows (the columns of M)", V)
    if V.device != M.device:
        raise elsewhere("V", V, "M", M.device)


def _outputs(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    (l, q), m = M.shape, V.shape[1]
    return V.new_empty(m, l).mT, V.new_empty(m, q).mT


_OP = Op(
    "sketch(Tensor M, Tensor V) -> (Tensor, Tensor)",
    check=check_sketch,
    outputs=_outputs,
    default="default.sketch",
    kernels=(
        Kernel(
            "native.sketch",
            "cuda",
            can=lambda M, V: V.dtype == torch.float32,
            reason="reads a large weight once",
        ),
    ),
)


def sketch(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Both products of a power step, Y = M V and Z = M^T Y.

    A kernel that reads M once from memory rounds M and V to TF32 and gives Y as rounded to TF32 too, so that
    Z = M^T Y holds to float32 for the Y it returns and the M it read.

    Args:
        M: (l, q) floating point.
        V: (q, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Y (l, m) and Z (q, m), their columns contiguous, in the dtype of ``V``.
    """
    return _OP(M, V)
