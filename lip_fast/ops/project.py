"""The second product of a power step."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.ops.checks import COMPUTED, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["check_project", "project"]


def check_project(M: Tensor, Y: Tensor) -> None:
    """Refuse columns Y that do not fit the weight."""
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if Y.dim() != 2 or Y.dtype not in COMPUTED:
        raise not_a_matrix("Y", Y, COMPUTED)
    if Y.shape[0] != M.shape[0]:
        raise expected(f"Y with {M.shape[0]} rows (the rows of M)", Y)
    if Y.device != M.device:
        raise elsewhere("Y", Y, "M", M.device)


def _can_triton(M: Tensor, Y: Tensor) -> bool:
    return M.dtype in STORED and Y.dtype == torch.float32 and Y.shape[1] <= MAX_COLUMNS


_OP = Op(
    "project(Tensor M, Tensor Y) -> Tensor",
    check=check_project,
    outputs=lambda M, Y: Y.new_empty(Y.shape[1], M.shape[1]).mT,
    default="default.update:project",
    kernels=(
        Kernel(
            "triton.project",
            can=_can_triton,
            reason="in float32 on the tensor cores, the same bits each time",
        ),
    ),
)


def project(M: Tensor, Y: Tensor) -> Tensor:
    """The second product of a power step, Z = M^T Y.

    Args:
        M: (l, q) floating point.
        Y: (l, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    return _OP(M, Y)
