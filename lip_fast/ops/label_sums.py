"""What the labels of a batch say of directions; two ops, since a CSR matrix is three tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.kernel import Kernel
from lip_fast.backends.triton import STORED
from lip_fast.ops.checks import (
    COMPUTED,
    elsewhere,
    expected,
    not_a_matrix,
    not_columns_of_a_kind,
    wrong_dtype,
    wrong_shape,
)
from lip_fast.ops.op import Op
from lip_fast.targets import CSR, Targets

__all__ = ["Sums", "label_sums"]

# Products X B of up to so many multiplications are taken faster by one thread in one call than by BLAS in the
# middle of ten small operations: 128 rows of 512 features and 5 directions in a fifth of the time, 16 times
# that about even.
_SMALL_PRODUCT = 1 << 22


class Sums(NamedTuple):
    """What the labels say of r directions: s_i* = numerator_i / denominator_i."""

    numerator: Tensor
    denominator: Tensor
    energy: Tensor
    masked: Tensor


def _check(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, *, rows: int | None = None
) -> None:
    if X.dim() != 2 or not X.is_floating_point():
        raise not_a_matrix("X", X)
    n, q = X.shape
    if A.dim() != 2 or A.dtype not in COMPUTED:
        raise not_a_matrix("A", A, COMPUTED)
    l, r = A.shape
    if B.dim() != 2 or B.dtype != A.dtype or B.shape[1] != r:
        raise not_columns_of_a_kind(A, B, r)
    if B.shape[0] != q:
        raise expected(f"B with {q} rows", B)
    rows = Y.shape[0] if rows is None else rows
    if rows != n:
        raise expected(f"labels of {n} rows", f"{rows} rows")
    if Y.dim() == 1 and Y.dtype != torch.int64:
        raise wrong_dtype("class indices in torch.int64", Y)
    if bias is not None and bias.shape != (l,):
        raise wrong_shape("a bias", bias, (l,))
    device = X.device
    for name, F in (("Y", Y), ("A", A), ("B", B), ("a bias", bias)):
        if F is not None and F.device != device:
            raise elsewhere(name, F, "X", device)


def _outputs(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r = A.shape[1]
    X = X.new_empty(0, dtype=torch.float64)
    return X.new_empty(r), X.new_empty(r), X.new_empty(()), X.new_empty((), dtype=torch.int64)


def _can_native(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    return (
        X.dtype == A.dtype == B.dtype == torch.float32
        and Y.dim() == 1
        and (bias is None or bias.dtype == torch.float32)
    )


def _pays_native(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    return X.numel() * A.shape[1] <= _SMALL_PRODUCT and _can_native(X, Y, A, B, bias)


def _can_triton(X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    return X.dtype in STORED and A.dtype == B.dtype == torch.float32


def _of_csr(of: Callable[..., Any]) -> Callable[..., Any]:
    """``of`` for the labels of a CSR matrix, of which its columns stand for all."""
    return lambda X, crow, col, values, *rest: of(X, col, *rest)


_OP = Op(
    "label_sums(Tensor X, Tensor Y, Tensor A, Tensor B, Tensor? bias) -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    default="default.label_sums",
    kernels=(
        Kernel(
            "native.label_sums",
            "cpu",
            can=_can_native,
            pays=_pays_native,
            reason="one call for small batches of class indices",
        ),
        Kernel("triton.label_sums", can=_can_triton, reason="reads the features once"),
    ),
)
_OP_CSR = Op(
    "label_sums_csr(Tensor X, Tensor crow, Tensor col, Tensor values, Tensor A, Tensor B, Tensor? bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    check=lambda X, crow, col, values, *rest: _check(X, col, *rest, rows=crow.shape[0] - 1),
    outputs=_of_csr(_outputs),
    default="default.label_sums:label_sums_csr",
    kernels=(
        Kernel(
            "triton.label_sums:label_sums_csr", can=_of_csr(_can_triton), reason="reads the features once"
        ),
    ),
)


def label_sums(X: Tensor, Y: Targets, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Sums:
    """The sums of label ambiguity purification (arXiv:2505.16159) over a batch, in one pass over X.

    ::

        numerator_i   = sum_n (x_n . b_i) ((y_n - bias) . a_i)
        denominator_i = sum_n (x_n . b_i)^2

    W_k a_i = 0 below the kept directions, so the residual Y - X W_k of the paper can be replaced by Y; X^T Y
    and X^T X are never formed, nor is the label matrix of class indices or candidate sets.

    Args:
        X: (n, q) features, floating point.
        Y: labels: (n,) int64 class indices (rows with an index outside 0..l-1 do not count), (n, l) dense,
            or a candidate matrix as :class:`lip_fast.targets.CSR`.
        A: (l, r) float32 or float64.
        B: (q, r) in the dtype of ``A``; products are taken in it.
        bias: (l,) or None.

    Returns:
        numerator (r,), denominator (r,) and energy = ||X||_F^2 () in float64; masked () int64, the number of
        class indices that were out of range and not the ignored index -100.
    """
    if isinstance(Y, CSR):
        return Sums(*_OP_CSR(X, *Y, A, B, bias))
    return Sums(*_OP(X, Y, A, B, bias))
