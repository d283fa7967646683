"""Random signs: entry (i, c) is +1 where bit c % 128 of Philox(i, step, c // 128, 0) is set, else -1.

out (columns, rows) float32, row-major: the transpose of what the op returns. Grid: blocks of rows times
column blocks of 128, the bits of one call of Philox. The step (int64) is read where it lies.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.philox import philox

# Signs of one call of Philox.
_SIGNS = 128


@triton.jit(do_not_specialize=["seed"])
def fresh_columns_kernel(out, step, seed, rows, columns, ROWS: tl.constexpr):
    """Signs of ROWS rows and one block of columns."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    block = tl.program_id(1)
    row = first + tl.arange(0, ROWS)
    word_of_step = tl.load(step).to(tl.uint32)
    zeros = tl.zeros((ROWS,), tl.uint32)
    w0, w1, w2, w3 = philox(row.to(tl.uint32), zeros + word_of_step, zeros + block.to(tl.uint32), zeros, seed)
    bit = tl.arange(0, 32)
    for n in tl.static_range(4):
        word = w0 if n == 0 else w1 if n == 1 else w2 if n == 2 else w3
        column = block.to(tl.int64) * 128 + 32 * n + bit
        sets = (word[None, :] >> bit[:, None].to(tl.uint32)) & 1
        sign = tl.where(sets != 0, 1.0, -1.0)
        there = (column[:, None] < columns) & (row[None, :] < rows)
        tl.store(out + column[:, None] * rows + row[None, :], sign, mask=there)


# 128 rows: a warp stores 512 contiguous bytes of a column.
CONFIGURATIONS = [
    Configuration(
        fresh_columns_kernel,
        {"out": "*fp32", "step": "*i64", "seed": "i64", "rows": "i32", "columns": "i32"},
        {"ROWS": 128},
    ),
]


def fresh_columns(step: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float32 of +-1. See :func:`lip_fast.ops.fresh_columns`."""
    out = step.new_empty((columns, rows), dtype=torch.float32)
    if out.numel():
        (form,) = CONFIGURATIONS
        grid = (triton.cdiv(rows, form.constexprs["ROWS"]), triton.cdiv(columns, _SIGNS))
        form.launch(grid, out=out, step=step, seed=seed, rows=rows, columns=columns)
    return out.mT
