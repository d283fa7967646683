"""Z = M'^T Y of AdamW's updated weight, which is computed and not stored.

M, exp_avg and the squares (l, q) in float32, bfloat16 or float16, Y (l, m) and Z (q, m) in float32. Grid:
blocks of columns times parts of the rows; a program keeps its part of Z in registers. Parts are added up in a
second pass, in a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.adamw_update import adamw_recompute, adamw_scalars, log
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
def adamw_project_kernel(
    M, exp_avg, squares, Y, Z, lr, update_count, found_inf,
    l, q, m, steps, M_s0, M_s1, Y_s0, Y_s1, log_beta1, log_beta2, eps, weight_decay,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q rows of Z, from a part of the rows of M'."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    step_size, correction, shrinkage = adamw_scalars(lr, update_count, log_beta1, log_beta2, weight_decay)
    acc = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    for i in range(0, steps):
        rows = (part.to(tl.int64) * steps + i) * BLOCK_L + tl.arange(0, BLOCK_L)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        new = adamw_recompute(
            M, exp_avg, squares, offsets(rows, columns, M_s0, M_s1), there,
            step_size, correction, shrinkage, eps, apply,
        )  # fmt: skip
        in_y = (rows[:, None] < l) & (directions[None, :] < m)
        y = tl.load(Y + offsets(rows, directions, Y_s0, Y_s1), mask=in_y, other=0.0)
        acc = tl.dot(tl.trans(new), y, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * q + columns[:, None]
    tl.store(Z + into, acc, mask=(columns[:, None] < q) & (directions[None, :] < m))


@functools.cache
def _form(
    dtypes: tuple[torch.dtype, torch.dtype], columns: int, rows_are_many: bool, guarded: bool = False
) -> Configuration:
    """For dtypes of weight and state, and a tile of so many columns of Y."""
    pointers = {"M": POINTERS[dtypes[0]], "exp_avg": POINTERS[dtypes[-1]], "squares": POINTERS[dtypes[-1]]}
    pointers |= dict.fromkeys(("Y", "Z", "lr", "update_count", "found_inf"), "*fp32")
    absent = {} if guarded else {"found_inf": None}
    return Configuration(
        adamw_project_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q m steps M_s0 Y_s1",
            "log_beta1 log_beta2 eps weight_decay",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "Y_s0"), 1),
            "BLOCK_L": 32,
            "BLOCK_Q": 64 if rows_are_many and columns <= 64 else 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        # With four, the widest tile spills where strides are not multiples of 16.
        num_warps=8 if rows_are_many or columns > 64 else 4,
        registers=REGISTERS,
    )


CONFIGURATIONS = [*representative(_form), *representative(_form, guarded=True)[3:]]


def adamw_project(
    M: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    update_count: Tensor,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.adamw_project`."""
    (l, q), m = M.shape, Y.shape[1]
    form = _form((M.dtype, exp_avg.dtype), padded(m), many(l), found_inf is not None)
    blocks = triton.cdiv(q, form.constexprs["BLOCK_Q"])
    count, steps = parts(blocks, l, form.constexprs["BLOCK_L"])
    Z = Y.new_empty(count, m, q)
    if Z.numel():
        form.launch(
            (blocks, count),
            M=M,
            exp_avg=exp_avg,
            squares=exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq,
            Y=Y,
            Z=Z,
            lr=lr,
            update_count=update_count,
            found_inf=found_inf,
            l=l,
            q=q,
            m=m,
            steps=steps,
            **strides("M", M),
            **strides("Y", Y),
            log_beta1=log(beta1),
            log_beta2=log(beta2),
            eps=eps,
            weight_decay=weight_decay,
        )
    return total(Z)
