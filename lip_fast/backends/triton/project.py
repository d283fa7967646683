"""Z = M^T Y of a weight that is stored.

M (l, q) in float32, bfloat16 or float16, Y (l, m) and Z (q, m) in float32. Grid: blocks of columns times
parts of the rows; a program keeps its part of Z in registers. Parts are added up in a second pass, in a fixed
order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.update import (
    POINTERS,
    PRECISION,
    many,
    offsets,
    padded,
    parts,
    signature,
    strides,
    total,
)


@triton.jit
def project_kernel(
    M, Y, Z, l, q, m, steps, M_s0, M_s1, Y_s0, Y_s1,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q rows of Z, from a part of the rows of M."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    for i in range(0, steps):
        rows = (part.to(tl.int64) * steps + i) * BLOCK_L + tl.arange(0, BLOCK_L)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        w = tl.load(M + offsets(rows, columns, M_s0, M_s1), mask=there, other=0.0).to(tl.float32)
        in_y = (rows[:, None] < l) & (directions[None, :] < m)
        y = tl.load(Y + offsets(rows, directions, Y_s0, Y_s1), mask=in_y, other=0.0)
        acc = tl.dot(tl.trans(w), y, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * q + columns[:, None]
    tl.store(Z + into, acc, mask=(columns[:, None] < q) & (directions[None, :] < m))


@functools.cache
def _form(dtype: torch.dtype, columns: int, rows_are_many: bool) -> Configuration:
    """For the dtype of the weight, and a tile of so many columns of Y."""
    return Configuration(
        project_kernel,
        signature({"M": POINTERS[dtype], "Y": "*fp32", "Z": "*fp32"}, "l q m steps M_s0 Y_s1", ""),
        {
            **dict.fromkeys(("M_s1", "Y_s0"), 1),
            "BLOCK_L": 32,
            "BLOCK_Q": 64 if rows_are_many else 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        num_warps=8 if columns > 64 else 4,
    )


CONFIGURATIONS = [
    _form(torch.float32, 64, True),
    _form(torch.float32, 128, True),
    _form(torch.float32, 64, False),
    _form(torch.float32, 128, False),
    _form(torch.bfloat16, 64, True),
]


def project(M: Tensor, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.project`."""
    (l, q), m = M.shape, Y.shape[1]
    form = _form(M.dtype, padded(m), many(l))
    blocks = triton.cdiv(q, form.constexprs["BLOCK_Q"])
    count, steps = parts(blocks, l, form.constexprs["BLOCK_L"])
    Z = Y.new_empty(count, m, q)
    if Z.numel():
        form.launch(
            (blocks, count), M=M, Y=Y, Z=Z, l=l, q=q, m=m, steps=steps, **strides("M", M), **strides("Y", Y)
        )
    return total(Z)
