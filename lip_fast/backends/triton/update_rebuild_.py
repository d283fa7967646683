"""Write the updated weight: A diag(s) B^T, or M' + A diag(s) B^T, or M' alone, for any rule.

M, the gradient and the state (l, q) in float32, bfloat16 or float16; A (l, t), s (t,), B (q, t) in float32. A
flag on the device chooses. Grid: tiles of M. Into float16 a first pass looks whether all entries fit.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.default.rebuild_ import DROPPED_BITS
from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.philox import round_stochastically, rounding_noise
from lip_fast.backends.triton.rules import FORMS, Operands, arguments, configuration, examples, operands
from lip_fast.backends.triton.update import PRECISION, is_unset, offsets, recall, strides
from lip_fast.rules import rule_of

# Of the weight: 128 contiguous bytes a row of a narrow format; the three passes of a product
# leave registers for two programs on a multiprocessor.
_TILE = {"BLOCK_L": 32, "BLOCK_Q": 64, "BLOCK_T": 16, "PRECISION": PRECISION}
_TILE_WARPS = 8


@triton.jit
def product_tile(
    A, s, B, rows, columns, l, q, t, A_s0, A_s1, B_s0, B_s1,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (BLOCK_L, BLOCK_Q) of A diag(s) B^T in float32."""
    acc = tl.zeros((BLOCK_L, BLOCK_Q), tl.float32)
    for first in range(0, t, BLOCK_T):
        k = first + tl.arange(0, BLOCK_T)
        in_a = (rows[:, None] < l) & (k[None, :] < t)
        in_b = (columns[:, None] < q) & (k[None, :] < t)
        a = tl.load(A + offsets(rows, k, A_s0, A_s1), mask=in_a, other=0.0)
        b = tl.load(B + offsets(columns, k, B_s0, B_s1), mask=in_b, other=0.0)
        scaled = a * tl.load(s + k, mask=k < t, other=0.0)[None, :]
        acc = tl.dot(scaled, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def finish_tile(
    M, where, there, updated, product, rows, first_column, written, apply, step, seed, largest,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, CHECK: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Store the tile: the factors (added to M') where ``written``, else M', nothing unless ``apply``.

    With ``CHECK`` nothing is stored, and ``written`` becomes False where an entry is beyond ``largest``, the
    largest number of the format of M. Several programs may store the same False.
    """
    new = product
    if ACCUMULATE:
        new = updated + product
    if DROPPED > 0:
        new = round_stochastically(
            new, rounding_noise(rows, first_column, tl.load(step), seed, BLOCK_Q), DROPPED
        )
    if CHECK:
        # NaN is not within either.
        broken = there & ((tl.abs(new) <= largest) == 0)
        if tl.max(tl.max(broken.to(tl.int32), 1), 0) > 0:
            tl.store(written, False)
    else:
        narrow: tl.constexpr = M.dtype.element_ty
        alone = is_unset(written, BLOCK_L, BLOCK_Q)
        tl.store(M + where, tl.where(alone, updated.to(narrow), new.to(narrow)), mask=there & apply)


@triton.jit(do_not_specialize=["seed"])
def update_rebuild_kernel(
    M, grad, state0, state1, A, s, B, written, scalar0, scalar1, scalar2, step, found_inf, seed,
    l, q, t, M_s0, M_s1, grad_s0, grad_s1, A_s0, A_s1, B_s0, B_s1, x0, x1, x2, x3, x4, x5, x6, x7, largest,
    PREPARE: tl.constexpr, WEIGHT: tl.constexpr, VARIANT: tl.constexpr,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, CHECK: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of M; with CHECK it is looked at, and not written."""
    tiles = tl.cdiv(q, BLOCK_Q)
    first_column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_Q
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = first_column + tl.arange(0, BLOCK_Q)
    there = (rows[:, None] < l) & (columns[None, :] < q)
    where = offsets(rows, columns, M_s0, M_s1)
    apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
    values = PREPARE(scalar0, scalar1, scalar2, x0, x1, x2, x3, x4, x5, x6, x7)
    # The old weight and the state are not read where the factors replace them.
    needed = there
    if not ACCUMULATE:
        needed = there & is_unset(written, BLOCK_L, BLOCK_Q)
    old = recall(M, where, needed)
    g = recall(grad, offsets(rows, columns, grad_s0, grad_s1), needed)
    updated = WEIGHT(old, g, recall(state0, where, needed), recall(state1, where, needed), values, VARIANT)
    # 0 / 0 where eps is 0.
    updated = tl.where(needed, tl.where(apply, updated, old), 0.0)
    product = product_tile(
        A, s, B, rows, columns, l, q, t, A_s0, A_s1, B_s0, B_s1, BLOCK_L, BLOCK_Q, BLOCK_T, PRECISION
    )
    finish_tile(
        M, where, there, updated, product, rows, first_column, written, apply, step, seed, largest,
        ACCUMULATE, DROPPED, CHECK, BLOCK_L, BLOCK_Q,
    )  # fmt: skip


@functools.cache
def _form(case: Operands, accumulate: bool, guarded: bool, check: bool = False) -> Configuration:
    pointers = dict.fromkeys(("A", "s", "B", *("found_inf",) * guarded), "*fp32")
    return configuration(
        update_rebuild_kernel,
        case,
        pointers | {"written": "*i1", "step": "*i64", "seed": "i64"},
        "l q t M_s0 A_s1 B_s1",
        {
            **dict.fromkeys(("M_s1", "A_s0", "B_s0"), 1),
            "ACCUMULATE": accumulate,
            "DROPPED": DROPPED_BITS.get(case.weight, 0),
            "CHECK": check,
            **_TILE,
        },
        "largest",
        num_warps=_TILE_WARPS,
    )


# Added to the weight or in its place, guarded or not; of the variants those into narrow formats.
CONFIGURATIONS = [
    _form(case, accumulate, guarded, check)
    for other_variant, (single, half, double_byte) in examples(current=True)
    for case, accumulate, guarded, check in [
        (single, True, True, False),
        (single, False, False, False),
        (half, True, True, False),
        (double_byte, True, True, True),
    ][2 * other_variant :]
]


def update_rebuild_(
    M: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    scalars: Sequence[Tensor],
    found_inf: Tensor | None,
    rule: str,
    settings: Sequence[float],
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place. See :func:`lip_fast.ops.update_rebuild_`."""
    written = ok.clone() if found_inf is None else ok & (found_inf == 0)
    if not M.numel():
        return written
    how, form = rule_of(rule, scalars, settings), FORMS[rule]
    gradient, current = form.current(how, grad, state)
    case = operands(how, M, gradient, current, form.variant(how, len(state)))
    (l, q), t = M.shape, A.shape[1]
    grid = (triton.cdiv(l, _TILE["BLOCK_L"]) * triton.cdiv(q, _TILE["BLOCK_Q"]),)
    given = {
        "M": M,
        "A": A,
        "s": s.contiguous(),
        "B": B,
        "written": written,
        "step": step,
        "found_inf": found_inf,
        "seed": seed,
        "l": l,
        "q": q,
        "t": t,
        **strides("M", M),
        **strides("A", A),
        **strides("B", B),
        "largest": torch.finfo(M.dtype).max,
        **arguments(how, gradient, current),
    }
    # Only float16 can overflow here: its range is far smaller than that of the sums.
    for check in (True, False) if M.dtype == torch.float16 else (False,):
        _form(case, accumulate, found_inf is not None, check).launch(grid, **given)
    return written
