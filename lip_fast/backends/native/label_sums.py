"""The 2r sums of a small batch with class indices, in one call: a few rows are not worth ten operations."""

import torch
from torch import Tensor

from lip_fast.backends.native.library import MODULES
from lip_fast.targets import IGNORE_INDEX


def label_sums(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class indices (n,). See :func:`lip_fast.ops.label_sums`."""
    (n, q), (l, r) = X.shape, A.shape
    if X.stride(1) != 1:
        X = X.contiguous()
    Y = Y.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    numerator = X.new_empty(r, dtype=torch.float64)
    denominator, energy = torch.empty_like(numerator), X.new_empty((), dtype=torch.float64)
    masked = X.new_empty((), dtype=torch.int64)
    MODULES["cpu"].label_sums(
        X.data_ptr(),
        n,
        q,
        X.stride(0),
        Y.data_ptr(),
        A.data_ptr(),
        l,
        *A.stride(),
        B.data_ptr(),
        *B.stride(),
        r,
        0 if bias is None else bias.data_ptr(),
        IGNORE_INDEX,
        numerator.data_ptr(),
        denominator.data_ptr(),
        energy.data_ptr(),
        masked.data_ptr(),
    )
    return numerator, denominator, energy, masked
