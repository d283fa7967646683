"""Z = M^T Y of a weight that is stored, or of the one that an update gives, which is computed and not stored.

M, and of an updated weight the gradient and the state, (l, q) in float32, bfloat16 or float16, Y (l, m) and
Z (q, m) in float32. Grid: blocks of columns times parts of the rows; a program keeps its part of Z in
registers. Parts are added up in a second pass, in a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.rules import Operands, Source, configuration, examples, product_forms
from lip_fast.backends.triton.update import (
    PRECISION,
    is_unset,
    many,
    offsets,
    padded,
    parts,
    recall,
    strides,
    total,
)
from lip_fast.rules import Updated


@triton.jit
def project_kernel(
    M, grad, state0, state1, Y, Z, scalar0, scalar1, scalar2, found_inf,
    l, q, m, steps, M_s0, M_s1, grad_s0, grad_s1, Y_s0, Y_s1, x0, x1, x2, x3, x4, x5, x6, x7,
    PREPARE: tl.constexpr, WEIGHT: tl.constexpr, VARIANT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q rows of Z, from a part of the rows of M, or of M' where there is a WEIGHT."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    if WEIGHT is not None:
        apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
        values = PREPARE(scalar0, scalar1, scalar2, x0, x1, x2, x3, x4, x5, x6, x7)
    acc = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    for i in range(0, steps):
        rows = (part.to(tl.int64) * steps + i) * BLOCK_L + tl.arange(0, BLOCK_L)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        where = offsets(rows, columns, M_s0, M_s1)
        w = recall(M, where, there)
        if WEIGHT is not None:
            g = recall(grad, offsets(rows, columns, grad_s0, grad_s1), there)
            new = WEIGHT(w, g, recall(state0, where, there), recall(state1, where, there), values, VARIANT)
            # 0 / 0 where eps is 0.
            w = tl.where(there, tl.where(apply, new, w), 0.0)
        in_y = (rows[:, None] < l) & (directions[None, :] < m)
        y = tl.load(Y + offsets(rows, directions, Y_s0, Y_s1), mask=in_y, other=0.0)
        acc = tl.dot(tl.trans(w), y, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * q + columns[:, None]
    tl.store(Z + into, acc, mask=(columns[:, None] < q) & (directions[None, :] < m))


@functools.cache
def _form(case: Operands, columns: int, rows_are_many: bool) -> Configuration:
    """For a tile of so many columns of Y."""
    stored = case.rule is None
    return configuration(
        project_kernel,
        case,
        {"Y": "*fp32", "Z": "*fp32"},
        "l q m steps Y_s1",
        {
            "Y_s0": 1,
            "BLOCK_L": 32,
            "BLOCK_Q": 64 if rows_are_many and (stored or columns <= 64) else 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        # With four, the widest tile of an updated weight spills where strides are not multiples of 16.
        num_warps=8 if columns > 64 or (rows_are_many and not stored) else 4,
    )


CONFIGURATIONS = [
    *product_forms(_form, Operands(torch.float32), Operands(torch.bfloat16)),
    *(
        form
        for with_all, (single, half, _) in examples(current=True)
        for form in product_forms(_form, single, half, with_all)
    ),
]


def project(M: Tensor, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.project`."""
    return _project(Source(M), Y)


def update_project(updated: Updated, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.update_project`."""
    return _project(Source.current(updated), Y)


def _project(source: Source, Y: Tensor) -> Tensor:
    (l, q), m = source.M.shape, Y.shape[1]
    form = _form(source.operands(), padded(m), many(l))
    blocks = triton.cdiv(q, form.constexprs["BLOCK_Q"])
    count, steps = parts(blocks, l, form.constexprs["BLOCK_L"])
    Z = Y.new_empty(count, m, q)
    if Z.numel():
        sizes = {"l": l, "q": q, "m": m, "steps": steps}
        form.launch((blocks, count), Y=Y, Z=Z, **sizes, **strides("Y", Y), **source.arguments())
    return total(Z)
