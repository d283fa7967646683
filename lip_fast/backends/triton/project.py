"""Z = M^T Y of a weight that is stored, or of the one that an update gives, which is computed and not stored.

M, and of an updated weight the gradient and the state, (l, q) in float32, bfloat16 or float16, Y (l, m) and
Z (q, m) in float32. Grid: blocks of columns times parts of the rows; a program keeps its part of Z in
registers. Parts are added up in a second pass, in a fixed order.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.rules import FORMS, Operands, arguments, configuration, examples, operands
from lip_fast.backends.triton.update import (
    POINTERS,
    PRECISION,
    is_unset,
    many,
    offsets,
    padded,
    parts,
    recall,
    signature,
    strides,
    total,
)
from lip_fast.rules import rule_of


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
def _form(dtype: torch.dtype, columns: int, rows_are_many: bool) -> Configuration:
    """For the dtype of a weight that is stored, and a tile of so many columns of Y."""
    given = signature({"M": POINTERS[dtype], "Y": "*fp32", "Z": "*fp32"}, "l q m steps M_s0 Y_s1", "")
    fixed = {
        **dict.fromkeys(("M_s1", "Y_s0"), 1),
        "BLOCK_L": 32,
        "BLOCK_Q": 64 if rows_are_many else 32,
        "BLOCK_M": columns,
        "PRECISION": PRECISION,
    }
    absent = {name: None for name in project_kernel.arg_names if name not in given and name not in fixed}
    return Configuration(project_kernel, given, {**absent, **fixed}, num_warps=8 if columns > 64 else 4)


@functools.cache
def _update_form(case: Operands, columns: int, rows_are_many: bool, guarded: bool = False) -> Configuration:
    """For an updated weight, and a tile of so many columns of Y."""
    return configuration(
        project_kernel,
        case,
        dict.fromkeys(("Y", "Z", *("found_inf",) * guarded), "*fp32"),
        "l q m steps M_s0 Y_s1",
        {
            **dict.fromkeys(("M_s1", "Y_s0"), 1),
            "BLOCK_L": 32,
            "BLOCK_Q": 64 if rows_are_many and columns <= 64 else 32,
            "BLOCK_M": columns,
            "PRECISION": PRECISION,
        },
        # With four, the widest tile spills where strides are not multiples of 16.
        num_warps=8 if rows_are_many or columns > 64 else 4,
    )


# See update_sketch_.py.
CONFIGURATIONS = [
    _form(torch.float32, 64, True),
    _form(torch.float32, 128, True),
    _form(torch.float32, 64, False),
    _form(torch.float32, 128, False),
    _form(torch.bfloat16, 64, True),
    *(
        _update_form(case, columns, rows_are_many, with_all)
        for with_all, (single, half, _) in examples(current=True)
        for case, columns, rows_are_many in [
            (single, 64, True),
            (single, 128, True),
            (single, 64, False),
            (single, 128, False),
            (half, 64, True),
        ][3 * with_all :]
    ),
]


def project(M: Tensor, Y: Tensor) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.project`."""
    return _launch(_form(M.dtype, padded(Y.shape[1]), many(len(M))), M, Y)


def update_project(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    Y: Tensor,
    scalars: Sequence[Tensor],
    found_inf: Tensor | None,
    rule: str,
    settings: Sequence[float],
) -> Tensor:
    """Z (q, m). See :func:`lip_fast.ops.update_project`."""
    how, form = rule_of(rule, scalars, settings), FORMS[rule]
    gradient, current = form.current(how, grad, state)
    case = operands(how, M, gradient, current, form.variant(how, len(state)))
    kernel = _update_form(case, padded(Y.shape[1]), many(len(M)), found_inf is not None)
    return _launch(kernel, M, Y, found_inf=found_inf, **arguments(how, gradient, current))


def _launch(form: Configuration, M: Tensor, Y: Tensor, **update: object) -> Tensor:
    (l, q), m = M.shape, Y.shape[1]
    blocks = triton.cdiv(q, form.constexprs["BLOCK_Q"])
    count, steps = parts(blocks, l, form.constexprs["BLOCK_L"])
    Z = Y.new_empty(count, m, q)
    if Z.numel():
        sizes = {"l": l, "q": q, "m": m, "steps": steps, **strides("M", M), **strides("Y", Y)}
        form.launch((blocks, count), M=M, Y=Y, Z=Z, **sizes, **update)
    return total(Z)
