"""G = X^T X, half of its tiles, the other half mirrored: symmetric to the bit.

X (n, q) float32, bfloat16 or float16, any strides; G (q, q) float32. Two passes:

1. ``gram_kernel``, grid: tiles of G times parts of the rows; those below the diagonal end at once. Float32 is
   taken in three passes of tf32 ("tf32x3"), the narrow formats in one, which has all their digits.
2. ``gram_total_kernel`` adds the parts up in float64, in a fixed order, and writes both halves.

Tensor cores cut where they add, and the sums of squares on the diagonal would all be cut downwards: a product
is taken over 256 rows, and such products are added up outside of them, rounded to nearest.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.update import POINTERS, PRECISION, REGISTERS, offsets, parts, signature, strides

# Rows that a product is taken over in tensor cores, by 8 an addition: 96 of them in three passes, which cut
# 96 2^-23 at most.
_RUN = 256
# Rows at a time, and warps: with these the two accumulators of a tile and the addresses stay in registers.
_ROWS = 16
_WARPS = 8
# Rows and columns of a tile of the second pass: 128 contiguous bytes of either half.
_MIRRORED = 32
# Tile of G; narrow formats leave registers for one that reads the features half as often, where there are
# enough of them for a tile on each multiprocessor of an H100 (132) without parts of the rows.
_TILE, _LARGE_TILE = 64, 128
_MANY_FEATURES = 2048


@triton.jit
def gram_kernel(
    X, mask, partial, n, q, runs, X_s0, X_s1, mask_s0,
    RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (BLOCK, BLOCK) of G from ``runs`` runs of rows; ``mask`` (n,) bool or None: which rows count."""
    i, j = tl.program_id(0), tl.program_id(1)
    part = tl.program_id(2).to(tl.int64)
    if i <= j:
        left = i.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        right = j.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK, BLOCK), tl.float32)
        for run in range(0, runs):
            acc = tl.zeros((BLOCK, BLOCK), tl.float32)
            for first in range(0, RUN, ROWS):
                rows = (part * runs + run) * RUN + first + tl.arange(0, ROWS)
                there = rows < n
                if mask is not None:
                    there = there & (tl.load(mask + rows * mask_s0, mask=there, other=0) != 0)
                a = tl.load(
                    X + offsets(rows, left, X_s0, X_s1), mask=there[:, None] & (left[None, :] < q), other=0.0
                ).to(tl.float32)
                b = tl.load(
                    X + offsets(rows, right, X_s0, X_s1),
                    mask=there[:, None] & (right[None, :] < q),
                    other=0.0,
                ).to(tl.float32)
                acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
            total += acc
        into = (part * q + left[:, None]) * q + right[None, :]
        tl.store(partial + into, total, mask=(left[:, None] < q) & (right[None, :] < q))


@triton.jit
def gram_total_kernel(partial, G, parts, q, BLOCK: tl.constexpr):
    """A tile of the upper half of G and its mirror image, from the tiles of every part."""
    i, j = tl.program_id(0), tl.program_id(1)
    if i <= j:
        row = i.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        column = j.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        upper = (row[:, None] <= column[None, :]) & (column[None, :] < q)
        total = tl.zeros((BLOCK, BLOCK), tl.float64)
        for part in range(0, parts):
            at = (tl.cast(part, tl.int64) * q + row[:, None]) * q + column[None, :]
            total += tl.load(partial + at, mask=upper, other=0.0).to(tl.float64)
        sums = total.to(tl.float32)
        tl.store(G + row[:, None] * q + column[None, :], sums, mask=upper)
        # Through a transposed tile, so that both halves are written along their rows.
        tl.store(G + column[:, None] * q + row[None, :], tl.trans(sums), mask=tl.trans(upper))


@functools.cache
def _form(dtype: torch.dtype, features_are_many: bool, masked: bool) -> Configuration:
    """For the dtype of the features, and with marks of the rows that count or without."""
    narrow = dtype != torch.float32
    pointers = {"X": POINTERS[dtype], "partial": "*fp32", **({"mask": "*i1"} if masked else {})}
    return Configuration(
        gram_kernel,
        signature(pointers, "n q runs X_s0"),
        {
            **({"mask_s0": 1} if masked else {"mask": None, "mask_s0": 0}),
            "X_s1": 1,
            "RUN": _RUN,
            "ROWS": _ROWS,
            "BLOCK": _LARGE_TILE if narrow and features_are_many else _TILE,
            "PRECISION": "tf32" if narrow else PRECISION,
        },
        num_warps=_WARPS,
        registers=REGISTERS,
    )


_TOTAL = Configuration(
    gram_total_kernel,
    {"partial": "*fp32", "G": "*fp32", "parts": "i32", "q": "i32"},
    {"BLOCK": _MIRRORED},
)
CONFIGURATIONS = [
    _TOTAL,
    *(
        _form(dtype, features_are_many, masked)
        for dtype, features_are_many in itertools.product(POINTERS, (False, True))
        if dtype != torch.float32 or not features_are_many
        for masked in (False, True)
    ),
]


def gram(X: Tensor, mask: Tensor | None) -> Tensor:
    """G (q, q). See :func:`lip_fast.ops.gram`."""
    n, q = X.shape
    G = X.new_empty((q, q), dtype=torch.float32)
    if not q:
        return G
    form = _form(X.dtype, q >= _MANY_FEATURES, mask is not None)
    tiles = triton.cdiv(q, form.constexprs["BLOCK"])
    split, runs = parts(tiles * (tiles + 1) // 2, n, _RUN)
    partial = X.new_empty((split, q, q), dtype=torch.float32)
    form.launch(
        (tiles, tiles, split),
        X=X,
        mask=mask,
        partial=partial,
        n=n,
        q=q,
        runs=runs,
        **strides("X", X),
        mask_s0=0 if mask is None else mask.stride(0),
    )
    mirrored = triton.cdiv(q, _MIRRORED)
    _TOTAL.launch((mirrored, mirrored), partial=partial, G=G, parts=split, q=q)
    return G
