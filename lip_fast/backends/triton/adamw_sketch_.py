"""AdamW's update and Y = M' V in one pass over the weight, the gradient and the state.

M, grad, exp_avg, exp_avg_sq (l, q) in float32, bfloat16 or float16, V (q, m) and Y (l, m) in float32. Grid:
blocks of rows times parts of the columns; a program keeps its part of Y in registers. Parts are added up in a
second pass, in a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.adamw_update import adamw_scalars, adamw_weight, log
from lip_fast.backends.triton.configuration import Configuration
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
def adamw_sketch_kernel(
    M, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, V, Y, lr, update_count, grad_scale, found_inf,
    l, q, m, steps, M_s0, M_s1, grad_s0, grad_s1, V_s0, V_s1,
    log_beta1, log_beta2, share1, share2, eps, weight_decay, sign,
    WRITE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_L rows of the update, and their part of Y."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    step_size, correction, shrinkage = adamw_scalars(lr, update_count, log_beta1, log_beta2, weight_decay)
    acc = tl.zeros((BLOCK_L, BLOCK_M), tl.float32)
    for i in range(0, steps):
        columns = (part * steps + i) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        kept = there & apply
        where = offsets(rows, columns, M_s0, M_s1)
        where_grad = offsets(rows, columns, grad_s0, grad_s1)
        old = tl.load(M + where, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + where_grad, mask=there, other=0.0).to(tl.float32)
        mean = tl.load(exp_avg + where, mask=there, other=0.0).to(tl.float32)
        square = tl.load(exp_avg_sq + where, mask=there, other=0.0).to(tl.float32)
        if grad_scale is not None:
            unscaled = tl.div_rn(g, tl.load(grad_scale).to(tl.float32)).to(grad.dtype.element_ty)
            tl.store(grad + where_grad, unscaled, mask=kept)
            g = unscaled.to(tl.float32)
        g = g * sign
        # By what is left of 1, and not by beta: its rounding to float32 would change the limit by 1e-5.
        mean = (mean + share1 * (g - mean)).to(exp_avg.dtype.element_ty)
        # An infinite one stays so, and is no NaN: its entry is never updated again.
        square = tl.where(square < float("inf"), square - share2 * square, square) + share2 * g * g
        square = square.to(exp_avg_sq.dtype.element_ty)
        tl.store(exp_avg + where, mean, mask=kept)
        tl.store(exp_avg_sq + where, square, mask=kept)
        if max_exp_avg_sq is not None:
            largest = tl.load(max_exp_avg_sq + where, mask=there, other=0.0).to(tl.float32)
            square = tl.maximum(largest, square.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
            square = square.to(max_exp_avg_sq.dtype.element_ty)
            tl.store(max_exp_avg_sq + where, square, mask=kept)
        new = adamw_weight(
            old, mean.to(tl.float32), square.to(tl.float32), step_size, correction, shrinkage, eps, apply
        )
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
def _form(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    columns: int,
    rows_are_many: bool,
    amsgrad: bool = False,
    scaled: bool = False,
    guarded: bool = False,
    write: bool = False,
) -> Configuration:
    """For dtypes of weight, gradient and state, and a tile of so many columns of V."""
    weight, gradient, state = (POINTERS[dtype] for dtype in dtypes)
    absent = {
        name: None
        for name, there in (("max_exp_avg_sq", amsgrad), ("grad_scale", scaled), ("found_inf", guarded))
        if not there
    }
    pointers = {
        "M": weight,
        "grad": gradient,
        "exp_avg": state,
        "exp_avg_sq": state,
        "max_exp_avg_sq": state,
        **dict.fromkeys(("V", "Y", "lr", "update_count", "grad_scale", "found_inf"), "*fp32"),
    }
    return Configuration(
        adamw_sketch_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q m steps M_s0 grad_s0 V_s1",
            "log_beta1 log_beta2 share1 share2 eps weight_decay sign",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "grad_s1", "V_s0"), 1),
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
    *representative(_form, amsgrad=True, scaled=True, guarded=True, write=True)[3:],
]


def adamw_sketch_(
    M: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    V: Tensor,
    lr: Tensor,
    update_count: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    write: bool,
) -> Tensor:
    """Y (l, m). See :func:`lip_fast.ops.adamw_sketch_`."""
    (l, q), m = M.shape, V.shape[1]
    form = _form(
        (M.dtype, grad.dtype, exp_avg.dtype),
        padded(m),
        many(l),
        max_exp_avg_sq is not None,
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
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            max_exp_avg_sq=max_exp_avg_sq,
            V=V,
            Y=Y,
            lr=lr,
            update_count=update_count,
            grad_scale=grad_scale,
            found_inf=found_inf,
            l=l,
            q=q,
            m=m,
            steps=steps,
            **strides("M", M),
            **strides("grad", grad),
            **strides("V", V),
            log_beta1=log(beta1),
            log_beta2=log(beta2),
            share1=1 - beta1,
            share2=1 - beta2,
            eps=eps,
            weight_decay=weight_decay,
            sign=-1.0 if maximize else 1.0,
        )
    return total(Y)
