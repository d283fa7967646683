"""The products of a power step."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.ops.checks import COMPUTED, elsewhere, expected, not_a_matrix
from lip_fast.ops.op import Op

__all__ = ["check_product", "project", "sketch"]


def check_product(M: Tensor, name: str, X: Tensor, side: int) -> None:
    """Refuse columns X that do not fit the rows of the weight (side 0), or its columns (side 1)."""
    if M.dim() != 2 or not M.is_floating_point():
        raise not_a_matrix("M", M)
    if X.dim() != 2 or X.dtype not in COMPUTED:
        raise not_a_matrix(name, X, COMPUTED)
    if X.shape[0] != M.shape[side]:
        raise expected(f"{name} with {M.shape[side]} rows (the {('rows', 'columns')[side]} of M)", X)
    if X.device != M.device:
        raise elsewhere(name, X, "M", M.device)


def _products(M: Tensor, V: Tensor, tf32: bool = True) -> tuple[Tensor, Tensor]:
    (l, q), m = M.shape, V.shape[1]
    return V.new_empty(m, l).mT, V.new_empty(m, q).mT


_SKETCH = Op(
    "sketch(Tensor M, Tensor V, bool tf32=True) -> (Tensor, Tensor)",
    check=lambda M, V, tf32=True: check_product(M, "V", V, 1),
    outputs=_products,
    default="default.sketch",
    kernels=(
        Kernel(
            "native.sketch",
            "cuda",
            can=lambda M, V, tf32=True: V.dtype == torch.float32 and tf32,
            reason="reads a large weight once",
        ),
    ),
)


def _can_triton(M: Tensor, Y: Tensor) -> bool:
    return M.dtype in STORED and Y.dtype == torch.float32 and Y.shape[1] <= MAX_COLUMNS


_PROJECT = Op(
    "project(Tensor M, Tensor Y) -> Tensor",
    check=lambda M, Y: check_product(M, "Y", Y, 0),
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


def sketch(M: Tensor, V: Tensor, *, tf32: bool = True) -> tuple[Tensor, Tensor]:
    """Both products of a power step, Y = M V and Z = M^T Y.

    A kernel that reads M once from memory rounds M and V to TF32 and gives Y as rounded to TF32 too, so that
    Z = M^T Y holds to float32 for the Y it returns and the M it read.

    Args:
        M: (l, q) floating point.
        V: (q, m) float32 or float64, its columns contiguous for speed.
        tf32: whether M and V may be rounded to TF32. Not where a weight is rebuilt from the products: most
            of an optimizer's update is below that rounding, and would be lost.

    Returns:
        Y (l, m) and Z (q, m), their columns contiguous, in the dtype of ``V``.
    """
    return _SKETCH(M, V, tf32)


def project(M: Tensor, Y: Tensor) -> Tensor:
    """The second product of a power step, Z = M^T Y.

    Args:
        M: (l, q) floating point.
        Y: (l, m) float32 or float64, its columns contiguous for speed.

    Returns:
        Z (q, m), its columns contiguous, in the dtype of ``Y``.
    """
    return _PROJECT(M, Y)
