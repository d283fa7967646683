"""The 2r sums of the refit, in one pass over the features, for each form of the labels."""

from collections.abc import Callable

import torch
from torch import Tensor

# Rows whose features and projections stay in the last-level cache of a core; on other devices the block only
# bounds the memory of the projections.
_ROWS_CPU = 4096
_ROWS_DEVICE = 1 << 18


def label_sums(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class indices (n,) or dense labels (n, l). See :func:`lip_fast.ops.label_sums`."""
    if Y.dim() == 2:
        return _accumulate(X, A, B, bias, lambda i, j: Y[i:j].to(A.dtype) @ A, None)
    valid = (Y >= 0) & (Y < A.shape[0])
    masked = (~valid & (Y != -100)).sum()
    if Y.device.type == "cpu" and bool(valid.all()):
        return *_accumulate(X, A, B, bias, lambda i, j: A.index_select(0, Y[i:j]), None)[:3], masked
    safe = torch.where(valid, Y, 0)
    return *_accumulate(X, A, B, bias, lambda i, j: A.index_select(0, safe[i:j]), valid)[:3], masked


def label_sums_csr(
    X: Tensor, crow: Tensor, col: Tensor, values: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels as a CSR matrix (n, l). See :func:`lip_fast.ops.label_sums`."""

    def project(i: int, j: int) -> Tensor:
        offsets = crow[i:j]
        if (i, j) == (0, len(crow) - 1):
            entries = slice(None)
        else:
            entries = slice(int(crow[i]), int(crow[j]))
            offsets = offsets - crow[i]
        return torch.nn.functional.embedding_bag(
            col[entries],
            A,
            offsets,
            mode="sum",
            per_sample_weights=values[entries].to(A.dtype),
        )

    return _accumulate(X, A, B, bias, project, None)


def _accumulate(
    X: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    project: Callable[[int, int], Tensor],
    valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum over blocks of rows, in float64 from block to block; ``project(i, j)`` is Y[i:j] A."""
    r = A.shape[1]
    sums = torch.zeros(3, r, dtype=torch.float64, device=X.device)
    energy = torch.zeros((), dtype=torch.float64, device=X.device)
    block = _ROWS_CPU if X.device.type == "cpu" else _ROWS_DEVICE
    for i in range(0, len(X), block):
        j = min(i + block, len(X))
        x = X[i:j].to(B.dtype)
        P = x @ B
        if valid is not None:
            P = P.masked_fill(~valid[i:j, None], 0)
            x = x.masked_fill(~valid[i:j, None], 0)
        flat = x.reshape(-1)
        energy += torch.dot(flat, flat)
        if r == 0:
            continue
        if bias is not None:
            sums[2] += P.sum(0)
        # In place: the block is still in cache, and a temporary of its size would not be.
        sums[0] += project(i, j).mul_(P).sum(0)
        sums[1] += P.square_().sum(0)
    numerator, denominator = sums[0], sums[1]
    if bias is not None:
        # The target is Y - 1 bias^T.
        numerator = numerator - sums[2] * (bias.to(A.dtype) @ A)
    masked = torch.zeros((), dtype=torch.int64, device=X.device)
    return numerator.clone(), denominator.clone(), energy, masked
