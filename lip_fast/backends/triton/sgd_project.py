"""Z = M'^T Y of the weight that SGD updated, which is computed and not stored.

M, grad and momentum_buffer (l, q) in float32, bfloat16 or float16, Y (l, m) and Z (q, m) in float32. Grid:
blocks of columns times parts of the rows; a program keeps its part of Z in registers. Parts are added up in a
second pass, in a fixed order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.sgd_update import sgd_recompute
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
def sgd_project_kernel(
    M, grad, momentum_buffer, Y, Z, lr, found_inf,
    l, q, m, steps, M_s0, M_s1, grad_s0, grad_s1, Y_s0, Y_s1, momentum, weight_decay, sign,
    NESTEROV: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q rows of Z, from a part of the rows of M'."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    part = tl.program_id(1)
    directions = tl.arange(0, BLOCK_M)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    rate = tl.load(lr).to(tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    for i in range(0, steps):
        rows = (part.to(tl.int64) * steps + i) * BLOCK_L + tl.arange(0, BLOCK_L)
        there = (rows[:, None] < l) & (columns[None, :] < q)
        new = sgd_recompute(
            M, grad, momentum_buffer, offsets(rows, columns, M_s0, M_s1),
            offsets(rows, columns, grad_s0, grad_s1), there,
            rate, momentum, weight_decay, sign, NESTEROV, apply,
        )  # fmt: skip
        in_y = (rows[:, None] < l) & (directions[None, :] < m)
        y = tl.load(Y + offsets(rows, directions, Y_s0, Y_s1), mask=in_y, other=0.0)
        acc = tl.dot(tl.trans(new), y, acc, input_precision=PRECISION)
    into = (part.to(tl.int64) * m + directions[None, :]) * q + columns[:, None]
    tl.store(Z + into, acc, mask=(columns[:, None] < q) & (directions[None, :] < m))


@functools.cache
def _form(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    columns: int,
    rows_are_many: bool,
    buffered: bool = True,
    nesterov: bool = False,
    guarded: bool = False,
) -> Configuration:
    """For dtypes of weight, gradient and buffer, and a tile of so many columns of Y."""
    weight, gradient, state = (POINTERS[dtype] for dtype in dtypes)
    absent = {
        name: None for name, there in (("momentum_buffer", buffered), ("found_inf", guarded)) if not there
    }
    pointers = {
        "M": weight,
        "grad": gradient,
        "momentum_buffer": state,
        **dict.fromkeys(("Y", "Z", "lr", "found_inf"), "*fp32"),
    }
    return Configuration(
        sgd_project_kernel,
        signature(
            {name: kind for name, kind in pointers.items() if name not in absent},
            "l q m steps M_s0 grad_s0 Y_s1",
            "momentum weight_decay sign",
        ),
        {
            **absent,
            **dict.fromkeys(("M_s1", "grad_s1", "Y_s0"), 1),
            "NESTEROV": nesterov,
            "BLOCK_L": 32,
            "BLOCK_Q": 64 if rows_are_many and columns <= 64 else 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        # With four, the widest tile spills where strides are not multiples of 16.
        num_warps=8 if rows_are_many or columns > 64 else 4,
        registers=REGISTERS,
    )


CONFIGURATIONS = [
    *representative(_form),
    *representative(_form, nesterov=True, guarded=True)[3:],
    _form((torch.float32, torch.float32, torch.float32), 64, False, buffered=False),
]


def sgd_project(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    found_inf: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.sgd_project`."""
    (l, q), m = M.shape, Y.shape[1]
    form = _form(
        (M.dtype, grad.dtype, M.dtype if momentum_buffer is None else momentum_buffer.dtype),
        padded(m),
        many(l),
        momentum_buffer is not None,
        nesterov,
        found_inf is not None,
    )
    blocks = triton.cdiv(q, form.constexprs["BLOCK_Q"])
    count, steps = parts(blocks, l, form.constexprs["BLOCK_L"])
    Z = Y.new_empty(count, m, q)
    if Z.numel():
        form.launch(
            (blocks, count),
            M=M,
            grad=grad,
            momentum_buffer=momentum_buffer,
            Y=Y,
            Z=Z,
            lr=lr,
            found_inf=found_inf,
            l=l,
            q=q,
            m=m,
            steps=steps,
            **strides("M", M),
            **strides("grad", grad),
            **strides("Y", Y),
            momentum=momentum,
            weight_decay=weight_decay,
            sign=-1.0 if maximize else 1.0,
        )
    return total(Z)
