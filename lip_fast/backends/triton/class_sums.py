"""Sums of the rows of each class, read where they lie, in a fixed order.

X (n, q) float32, bfloat16 or float16, any strides; the rows are put in the order of their classes by a stable
sort of the indices alone, after which a class is a segment of that order. Two passes:

1. ``chunk_sums_kernel``: the order is cut every 256 rows; a chunk that is all of one class is summed. Grid:
   chunks times blocks of columns.
2. ``class_sums_kernel``: a program for each class and block of columns adds the rows of its segment before
   its first whole chunk, the sums of its whole chunks, and the rows behind the last. However the rows are
   spread, it reads at most twice 255 rows, and n / 256 sums.

A tile of 16 rows is summed in float32, tiles in float64, and the result is rounded to float32 once: an entry
is within (15 + 1) 2^-24 of the sum of the magnitudes, whatever n is. No atomics: the same bits each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.update import POINTERS, signature, strides

# Rows of a chunk: at the 8192 to 65536 rows of a usual batch neither pass is much longer than the other
# where all rows are of one class.
_CHUNK = 256
# Rows of a tile: about a short segment (8192 rows of 1000 classes), and four times that many bytes a column
# under way while the tile before is added.
_ROWS = 16
# Columns of a tile, for few features and for many: 512 contiguous bytes of a narrow format.
_COLUMNS = (64, 256)


@triton.jit
def sum_of_rows(
    X, order, first, last, columns, q, X_s0, X_s1, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of the rows at positions first..last - 1 of the order: (COLUMNS,) float64."""
    total = tl.zeros((COLUMNS,), tl.float64)
    for begin in range(first, last, ROWS):
        position = begin + tl.arange(0, ROWS)
        row = tl.load(order + position, mask=position < last, other=0)
        x = tl.load(
            X + row[:, None] * X_s0 + columns[None, :] * X_s1,
            mask=(position[:, None] < last) & (columns[None, :] < q),
            other=0.0,
        )
        total += tl.sum(x.to(tl.float32), 0).to(tl.float64)
    return total


@triton.jit
def chunk_sums_kernel(
    X, order, label, chunks, q, classes, X_s0, X_s1,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One chunk of the order, where it is of one class; ``label`` (n,) int32 are the sorted indices."""
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    first = chunk * CHUNK
    one = tl.load(label + first)
    if (one == tl.load(label + first + CHUNK - 1)) & (one < classes):
        total = sum_of_rows(X, order, first, first + CHUNK, columns, q, X_s0, X_s1, ROWS, COLUMNS)
        tl.store(chunks + chunk * q + columns, total, mask=columns < q)


@triton.jit
def class_sums_kernel(
    X, order, starts, chunks, sums, q, X_s0, X_s1,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One class: ``starts`` (l + 1,) int64 are where the segments begin in the order."""
    index = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(starts + index)
    last = tl.load(starts + index + 1)
    whole = (first + CHUNK - 1) // CHUNK
    behind = tl.maximum(last // CHUNK, whole)
    # Without a whole chunk the rows before it are all there are, and none are behind.
    total = sum_of_rows(
        X, order, first, tl.minimum(whole * CHUNK, last), columns, q, X_s0, X_s1, ROWS, COLUMNS
    )
    for begin in range(whole, behind, ROWS):
        chunk = begin + tl.arange(0, ROWS)
        there = (chunk[:, None] < behind) & (columns[None, :] < q)
        total += tl.sum(tl.load(chunks + chunk[:, None] * q + columns[None, :], mask=there, other=0.0), 0)
    total += sum_of_rows(X, order, behind * CHUNK, last, columns, q, X_s0, X_s1, ROWS, COLUMNS)
    tl.store(sums + index * q + columns, total.to(tl.float32), mask=columns < q)


def _forms(dtype: torch.dtype, columns: int) -> list[Configuration]:
    """Both passes, for features that lie row by row."""
    given = {"X": POINTERS[dtype], "order": "*i64", "chunks": "*fp64"}
    constants = {"X_s1": 1, "CHUNK": _CHUNK, "ROWS": _ROWS, "COLUMNS": columns}
    of_chunks = signature({**given, "label": "*i32"}, "classes q X_s0")
    of_classes = signature({**given, "starts": "*i64", "sums": "*fp32"}, "q X_s0")
    return [
        Configuration(chunk_sums_kernel, of_chunks, constants),
        Configuration(class_sums_kernel, of_classes, constants),
    ]


CONFIGURATIONS = [form for dtype in POINTERS for columns in _COLUMNS for form in _forms(dtype, columns)]


def class_sums(X: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (l, q) and counts (l,). See :func:`lip_fast.ops.class_sums`."""
    n, q = X.shape
    # Rows that do not count come last. Indices of 32 bits are sorted in half the passes of 64.
    marked = torch.where((y >= 0) & (y < classes), y, classes).to(torch.int32)
    label, order = torch.sort(marked, stable=True)
    ends = torch.arange(classes + 1, device=y.device, dtype=torch.int32)
    starts = torch.searchsorted(label, ends)
    sums = X.new_empty((classes, q), dtype=torch.float32)
    if sums.numel():
        first, second = _forms(X.dtype, _COLUMNS[0] if q <= _COLUMNS[0] else _COLUMNS[1])
        blocks = triton.cdiv(q, first.constexprs["COLUMNS"])
        chunks = X.new_empty((n // _CHUNK, q), dtype=torch.float64)
        of_features = {"X": X, "order": order, "q": q, **strides("X", X)}
        if len(chunks):
            first.launch((len(chunks), blocks), label=label, chunks=chunks, classes=classes, **of_features)
        second.launch((classes, blocks), starts=starts, chunks=chunks, sums=sums, **of_features)
    return sums, starts.diff()
