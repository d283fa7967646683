"""The update of SGD and Y = M' V in one pass over the weight, the gradient and the state.

M, grad and momentum_buffer (l, q) in float32, bfloat16 or float16, V (q, m) and Y (l, m) in float32. Grid:
blocks of rows times parts of the columns; a program keeps its part of Y in registers. Parts are added up in a
second pass, in a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.sgd_update import sgd_direction, sgd_weight
from lip_fast.backends.triton.update import (
    POINTERS,
    PRECISION,
    REGISTERS,
    is_unset,
    many,
    offsets,
    padded,
    parts,
    representative,
    signature,
    strides,
    total,
)


@triton.jit
def sgd_sketch_kernel(
    M, grad, momentum_buffer, V, Y, lr, grad_scale, found_inf,
    l, q, m, steps, M_s0, M_s1, grad_s0, grad_s1, V_s0, V_s1,
    momentum, share, weight_decay, sign,
    NESTEROV: tl.constexpr, FIRST: tl.constexpr, WRITE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_L rows of the update, and their part of Y."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    rate = tl.load(lr).to(tl.float32)
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
        if momentum_buffer is None:
            new = sgd_weight(old, g, None, rate, momentum, weight_decay, sign, NESTEROV, apply)
        else:
            buffer = sgd_direction(old, g, weight_decay, sign)
            if not FIRST:
                before = tl.load(momentum_buffer + where, mask=there, other=0.0).to(tl.float32)
                buffer = momentum * before + share * buffer
            buffer = buffer.to(momentum_buffer.dtype.element_ty)
            tl.store(momentum_buffer + where, buffer, mask=kept)
            new = sgd_weight(
                old, g, buffer.to(tl.float32), rate, momentum, weight_decay, sign, NESTEROV, apply
            )
        if WRITE:
            stored = new.to(M.dtype.element_ty)
            tl.store(M + where, stored, mask=kept)
            new = stored.to(tl.float32)
        in_v = (columns[:, None] < q) & (directions[None, :] < m)
        v = tl.load(V + offsets(columns, directions, V_s0, V_s1), mask=in_v, other=0.0)
        acc = tl.dot(new, v, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * l + rows[:, None]
    tl.store(Y + into, acc, mask=(rows[:, None] < l) & (directions[None, :] < m))


@functools.cache
def _form(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    columns: int,
    rows_are_many: bool,
    buffered: bool = True,
    nesterov: bool = False,
    first: bool = False,
    scaled: bool = False,
    guarded: bool = False,
    write: bool = False,
) -> Configuration:
    """For dtypes of weight, gradient and buffer, and a tile of so many columns of V."""
    weight, gradient, state = (POINTERS[dtype] for dtype in dtypes)
    absent = {
        name: None
        for name, there in (("momentum_buffer", buffered), ("grad_scale", scaled), ("found_inf", guarded))
        if not there
    }
    pointers = {
        "M": weight,
        "grad": gradient,
        "momentum_buffer": state,
        **dict.fromkeys(("V", "Y", "lr", "grad_scale", "found_inf"), "*fp32"),
    }
    return Configuration(
        sgd_sketch_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q m steps M_s0 grad_s0 V_s1",
            "momentum share weight_decay sign",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "grad_s1", "V_s0"), 1),
            "NESTEROV": nesterov,
            "FIRST": first,
            "WRITE": write,
            "BLOCK_L": 32 if rows_are_many else 16,
            "BLOCK_Q": 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        num_warps=8 if rows_are_many else 4,
        registers=REGISTERS,
    )


CONFIGURATIONS = [
    *representative(_form),
    *representative(_form, nesterov=True, scaled=True, guarded=True, write=True)[3:],
    _form((torch.float32, torch.float32, torch.float32), 64, False, buffered=False),
]


def sgd_sketch_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    write: bool,
) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.sgd_sketch_`."""
    (l, q), m = M.shape, V.shape[1]
    form = _form(
        (M.dtype, grad.dtype, M.dtype if momentum_buffer is None else momentum_buffer.dtype),
        padded(m),
        many(l),
        momentum_buffer is not None,
        nesterov,
        first,
        grad_scale is not None,
        found_inf is not None,
        write,
    )
    blocks = triton.cdiv(l, form.constexprs["BLOCK_L"])
    count, steps = parts(blocks, q, form.constexprs["BLOCK_Q"])
    Y = V.new_empty(count, m, l)
    if l:
        form.launch(
            (blocks, count),
            M=M,
            grad=grad,
            momentum_buffer=momentum_buffer,
            V=V,
            Y=Y,
            lr=lr,
            grad_scale=grad_scale,
            found_inf=found_inf,
            l=l,
            q=q,
            m=m,
            steps=steps,
            **strides("M", M),
            **strides("grad", grad),
            **strides("V", V),
            momentum=momentum,
            share=1 - dampening,
            weight_decay=weight_decay,
            sign=-1.0 if maximize else 1.0,
        )
    return total(Y)
