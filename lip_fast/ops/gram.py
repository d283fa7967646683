"""What label statistics are made of, for any labels: the products of the features with each other."""

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import STORED
from lip_fast.ops.checks import elsewhere, not_a_matrix, wrong_dtype, wrong_shape
from lip_fast.ops.op import Op
from lip_fast.rounding import compute_dtype
from lip_fast.validation import full_precision

__all__ = ["gram"]


def _check(X: Tensor, mask: Tensor | None) -> None:
    if X.dim() != 2 or not X.is_floating_point():
        raise not_a_matrix("X", X)
    if mask is None:
        return
    if mask.shape != X.shape[:1]:
        raise wrong_shape("a mask", mask, X.shape[:1])
    if mask.dtype != torch.bool:
        raise wrong_dtype("a mask in torch.bool", mask)
    if mask.device != X.device:
        raise elsewhere("a mask", mask, "X", X.device)


_OP = Op(
    "gram(Tensor X, Tensor? mask) -> Tensor",
    check=_check,
    outputs=lambda X, mask: X.new_empty((X.shape[1], X.shape[1]), dtype=compute_dtype(X)),
    default="default.gram",
    kernels=(
        Kernel(
            "triton.gram",
            can=lambda X, mask: X.dtype in STORED,
            reason="half the products, in float32 on the tensor cores",
        ),
    ),
)


@full_precision
def gram(X: Tensor, mask: Tensor | None = None) -> Tensor:
    """The products of the features with each other, X^T X.

    Args:
        X: (n, q) features, floating point.
        mask: (n,) bool, True for the rows that count; the others may hold anything. None: all rows count.

    Returns:
        G (q, q) in float64 for float64 features, else in float32. A kernel of ours gives it symmetric to the
        bit, the library to rounding.
    """
    return _OP(X, mask)
