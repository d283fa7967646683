"""The 2r sums of the refit, in one pass over the features, for each form of the labels."""

from collections.abc import Callable

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.targets import IGNORE_INDEX, indices_in_range

# Few enough that features and projections stay in the cache of a core, many enough that starting threads
# costs little beside the product; on other devices the block only bounds the memory of the projections.
_ROWS_CPU = 4096
_ROWS_DEVICE = 1 << 18


def label_sums(
    X: Tensor, Y: Tensor, A: Tensor, B: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class indices (n,) or dense labels (n, l). See :func:`lip_fast.ops.label_sums`."""
    if Y.dim() == 2:
        return _accumulate(X, A, B, bias, lambda i, j: Y[i:j].to(A.dtype) @ A, None)
    if Y.device.type in host.READABLE and indices_in_range(Y, A.shape[0]):
        return _accumulate(X, A, B, bias, lambda i, j: A.index_select(0, Y[i:j]), None)
    valid = (Y >= 0) & (Y < A.shape[0])
    masked = (~valid & (Y != IGNORE_INDEX)).sum()
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

    # To divide the rows is to read where they begin; their projections are not larger than they are.
    block = None if X.device.type in host.READABLE else max(len(X), 1)
    return _accumulate(X, A, B, bias, project, None, block)


def _accumulate(
    X: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    project: Callable[[int, int], Tensor],
    valid: Tensor | None,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum over blocks of rows, in float64 from block to block; ``project(i, j)`` is Y[i:j] A."""
    if block is None:
        block = _ROWS_CPU if X.device.type == "cpu" else _ROWS_DEVICE
    parts: list[tuple[Tensor, ...]] = []
    # An empty batch is one empty block.
    for i in range(0, max(len(X), 1), block):
        j = min(i + block, len(X))
        x = X[i:j].to(B.dtype)
        if valid is not None:
            x = x.masked_fill(~valid[i:j, None], 0)
        # First, so that the product finds the block in cache.
        flat = x.reshape(-1)
        energy = torch.dot(flat, flat)
        P = x @ B
        column = () if bias is None else (P.sum(0),)
        # In place: the block is still in cache, and a temporary of its size would not be.
        numerator = (project(i, j) if A.shape[1] else P.clone()).mul_(P).sum(0)
        parts.append((numerator, P.square_().sum(0), energy, *column))
    numerator, denominator, energy, *columns = map(_total, zip(*parts, strict=True))
    if bias is not None:
        # The target is Y - 1 bias^T.
        numerator = numerator - columns[0] * (bias.to(A.dtype) @ A)
    return numerator, denominator, energy, torch.zeros((), dtype=torch.int64, device=X.device)


def _total(parts: tuple[Tensor, ...]) -> Tensor:
    if len(parts) == 1:
        return parts[0].double()
    return torch.stack(parts).sum(0, dtype=torch.float64)
