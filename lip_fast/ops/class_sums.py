"""What label statistics are made of, for class indices: the sums of the rows of each class."""

from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import STORED
from lip_fast.ops.checks import elsewhere, expected, not_a_matrix, wrong_dtype, wrong_shape
from lip_fast.ops.op import Op
from lip_fast.rounding import compute_dtype

__all__ = ["ClassSums", "class_sums"]


class ClassSums(NamedTuple):
    """The sum of the rows of each class, and how many they are."""

    sums: Tensor
    counts: Tensor


def _check(X: Tensor, y: Tensor, classes: int) -> None:
    if X.dim() != 2 or not X.is_floating_point():
        raise not_a_matrix("X", X)
    if y.shape != X.shape[:1]:
        raise wrong_shape("class indices", y, X.shape[:1])
    if y.dtype != torch.int64:
        raise wrong_dtype("class indices in torch.int64", y)
    if y.device != X.device:
        raise elsewhere("class indices", y, "X", X.device)
    if classes < 0:
        raise expected("classes >= 0", classes)


def _outputs(X: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    return X.new_empty((classes, X.shape[1]), dtype=compute_dtype(X)), y.new_empty(classes)


_OP = Op(
    "class_sums(Tensor X, Tensor y, int classes) -> (Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.class_sums",
    kernels=(
        Kernel(
            "triton.class_sums",
            # Indices are sorted as int32, and the rows that do not count have one of their own.
            can=lambda X, y, classes: X.dtype in STORED and classes < 2**31 - 1,
            reason="reads the features once, where they lie",
        ),
    ),
)


def class_sums(X: Tensor, y: Tensor, classes: int) -> ClassSums:
    """The sum of the rows of each class: Y^T X of the label matrix Y that is never formed.

    In a fixed order: the same inputs give the same bits.

    Args:
        X: (n, q) features, floating point.
        y: (n,) int64 class indices; rows with an index outside 0..classes - 1 do not count, whatever they
            hold.
        classes: l.

    Returns:
        sums (l, q), in float64 for float64 features, else added up and returned in float32; counts (l,)
        int64. A class without rows has zeros.
    """
    return ClassSums(*_OP(X, y, classes))
