"""An optimizer's update and Y = M' V in one pass over the weight, the gradient and the state, for any rule.

M, grad and the state (l, q) in float32, bfloat16 or float16, V (q, m) and Y (l, m) in float32. Grid: blocks
of rows times parts of the columns; a program keeps its part of Y in registers. Parts are added up in a second
pass, in a fixed order.
"""

import functools

import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.rules import Operands, Source, configuration, examples, product_forms
from lip_fast.backends.triton.update import PRECISION, is_unset, many, offsets, padded, parts, strides, total
from lip_fast.rules import Updated


@triton.jit
def update_sketch_kernel(
    M, grad, state0, state1, state2, V, Y, scalar0, scalar1, scalar2, grad_scale, found_inf,
    l, q, m, steps, M_s0, M_s1, grad_s0, grad_s1, V_s0, V_s1, x0, x1, x2, x3, x4, x5, x6, x7,
    PREPARE: tl.constexpr, ADVANCE: tl.constexpr, WEIGHT: tl.constexpr, VARIANT: tl.constexpr,
    WRITE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_L rows of the update, and their part of Y."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    values = PREPARE(scalar0, scalar1, scalar2, x0, x1, x2, x3, x4, x5, x6, x7)
    acc = tl.zeros((BLOCK_L, BLOCK_M), tl.float32)
    for i in range(0, steps):
        columns = (part * steps + i) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        kept = there & apply
        where = offsets(rows, columns, M_s0, M_s1)
        where_grad = offsets(rows, columns, grad_s0, grad_s1)
        old = tl.load(M + where, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + where_grad, mask=there, other=0.0).to(tl.float32)
        if grad_scale is not None:
            unscaled = tl.div_rn(g, tl.load(grad_scale).to(tl.float32)).to(grad.dtype.element_ty)
            tl.store(grad + where_grad, unscaled, mask=kept)
            g = unscaled.to(tl.float32)
        now0, now1 = ADVANCE(old, g, state0, state1, state2, where, there, kept, values, VARIANT)
        new = tl.where(apply, WEIGHT(old, g, now0, now1, values, VARIANT), old)
        if WRITE:
            stored = new.to(M.dtype.element_ty)
            tl.store(M + where, stored, mask=kept)
            new = stored.to(tl.float32)
        # 0 / 0 where eps is 0.
        new = tl.where(there, new, 0.0)
        in_v = (columns[:, None] < q) & (directions[None, :] < m)
        v = tl.load(V + offsets(columns, directions, V_s0, V_s1), mask=in_v, other=0.0)
        acc = tl.dot(new, v, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * l + rows[:, None]
    tl.store(Y + into, acc, mask=(rows[:, None] < l) & (directions[None, :] < m))


@functools.cache
def _form(case: Operands, columns: int, rows_are_many: bool, write: bool = False) -> Configuration:
    """For a tile of so many columns of V."""
    return configuration(
        update_sketch_kernel,
        case,
        {"V": "*fp32", "Y": "*fp32"},
        "l q m steps V_s1",
        {
            "V_s0": 1,
            "WRITE": write,
            "BLOCK_L": 32 if rows_are_many else 16,
            "BLOCK_Q": 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        num_warps=8 if rows_are_many else 4,
    )


CONFIGURATIONS = [
    form
    for with_all, (single, half, _) in examples(current=False)
    for form in product_forms(functools.partial(_form, write=with_all), single, half, with_all)
]


def update_sketch_(updated: Updated, V: Tensor, write: bool) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.update_sketch_`."""
    (l, q), m, source = updated.M.shape, V.shape[1], Source(*updated)
    form = _form(source.operands(), padded(m), many(l), write)
    blocks = triton.cdiv(l, form.constexprs["BLOCK_L"])
    count, steps = parts(blocks, q, form.constexprs["BLOCK_Q"])
    Y = V.new_empty(count, m, l)
    if l:
        sizes = {"l": l, "q": q, "m": m, "steps": steps}
        form.launch((blocks, count), V=V, Y=Y, **sizes, **strides("V", V), **source.arguments())
    return total(Y)
