"""Write the weight, each entry once: A diag(s) B^T, or M + A diag(s) B^T, where a flag on the device says so.

M is a weight that is stored, or the one that an update gives, which is computed and not stored: then M alone
is written where the flag says no. M, and of an updated weight the gradient and the state, (l, q) in float32,
bfloat16 or float16; A (l, t), s (t,), B (q, t) in float32; any strides. Products are taken and added up in
float32. Into the narrow formats the sum is rounded stochastically by bits of (seed, step), the same as those
of csrc/core/round.h. Grid: tiles of M.

The factors are not written where an entry would not be finite in a narrow format, so a pass before the write
looks for one. It multiplies out only tiles that are not cleared by the bound
sum_k max_i |a_ik| |s_k| max_j |b_jk|, and reads M only where M is added to.
"""

import functools
import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.default.rebuild_ import DROPPED_BITS
from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.philox import round_stochastically, rounding_noise
from lip_fast.backends.triton.rules import Operands, Source, configuration, examples
from lip_fast.backends.triton.update import POINTERS, PRECISION, is_unset, offsets, recall, strides
from lip_fast.rules import Updated


@triton.jit
def _factors(A, s, B, rows, columns, k, l, q, t, A_s0, A_s1, B_s0, B_s1):
    """Columns k of both factors for the rows and columns of a tile: A diag(s) (L, T) and B^T (T, Q)."""
    in_a = (rows[:, None] < l) & (k[None, :] < t)
    in_b = (columns[None, :] < q) & (k[:, None] < t)
    a = tl.load(A + offsets(rows, k, A_s0, A_s1), mask=in_a, other=0.0)
    b = tl.load(B + offsets(k, columns, B_s1, B_s0), mask=in_b, other=0.0)
    return a * tl.load(s + k, mask=k < t, other=0.0)[None, :], b


@triton.jit(do_not_specialize=["seed"])
def rebuild_kernel(
    M, grad, state0, state1, A, s, B, ok, written, scalar0, scalar1, scalar2, step, found_inf, seed,
    l, q, t, M_s0, M_s1, grad_s0, grad_s1, A_s0, A_s1, B_s0, B_s1, x0, x1, x2, x3, x4, x5, x6, x7, largest,
    PREPARE: tl.constexpr, WEIGHT: tl.constexpr, VARIANT: tl.constexpr,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, CHECK: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write one tile of M: the factors (added to it) where ``written``, else M' where there is a WEIGHT.

    With CHECK nothing is written, and where ``ok``, ``written`` becomes False where an entry is beyond
    ``largest``, the largest number of the format of M. Several programs may store the same False.
    """
    if CHECK or WEIGHT is None:  # noqa: SIM102 (the one is compiled in, the other is not)
        if tl.load(ok if CHECK else written) == 0:
            return
    tiles = tl.cdiv(q, BLOCK_Q)
    first_column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_Q
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    columns = first_column + tl.arange(0, BLOCK_Q)
    if CHECK or WEIGHT is not None:
        there = (rows[:, None] < l) & (columns[None, :] < q)
        where = offsets(rows, columns, M_s0, M_s1)
        # The old weight and the state are not read where the factors replace them.
        needed = there
        if not ACCUMULATE:
            needed = there & is_unset(written, BLOCK_L, BLOCK_Q)
        base = recall(M, where, needed)
    if WEIGHT is not None:
        apply = is_unset(found_inf, BLOCK_L, BLOCK_Q)
        values = PREPARE(scalar0, scalar1, scalar2, x0, x1, x2, x3, x4, x5, x6, x7)
        g = recall(grad, offsets(rows, columns, grad_s0, grad_s1), needed)
        now0, now1 = recall(state0, where, needed), recall(state1, where, needed)
        # 0 / 0 where eps is 0.
        base = tl.where(needed, tl.where(apply, WEIGHT(base, g, now0, now1, values, VARIANT), base), 0.0)
    if CHECK:
        bound = 0.0
        for first in range(0, t, BLOCK_T):
            k = first + tl.arange(0, BLOCK_T)
            a, b = _factors(A, s, B, rows, columns, k, l, q, t, A_s0, A_s1, B_s0, B_s1)
            # A maximum passes over NaN.
            a_most = tl.max(tl.where(a == a, tl.abs(a), float("inf")), 0)
            b_most = tl.max(tl.where(b == b, tl.abs(b), float("inf")), 1)
            bound += tl.sum(a_most * b_most)
        if ACCUMULATE:
            bound += tl.max(tl.max(tl.where(base == base, tl.abs(base), float("inf")), 1), 0)
        # Half of the range: rounding is far less. NaN is not cleared either.
        if bound < 0.5 * largest:
            return
    new = tl.zeros((BLOCK_L, BLOCK_Q), tl.float32)
    for first in range(0, t, BLOCK_T):
        k = first + tl.arange(0, BLOCK_T)
        a, b = _factors(A, s, B, rows, columns, k, l, q, t, A_s0, A_s1, B_s0, B_s1)
        new = tl.dot(a, b, new, input_precision=PRECISION)
    if WEIGHT is None:
        # Now, not to hold them during the product.
        there = (rows[:, None] < l) & (columns[None, :] < q)
        where = offsets(rows, columns, M_s0, M_s1)
        if ACCUMULATE:
            base = recall(M, where, there)
    if ACCUMULATE:
        new += base
    if DROPPED > 0:
        noise = rounding_noise(rows, first_column, tl.load(step), seed, BLOCK_Q)
        new = round_stochastically(new, noise, DROPPED)
    if CHECK:
        # Rounded as it is, an entry is out of range where it is beyond the largest number. So is NaN.
        broken = there & ((tl.abs(new) <= largest) == 0)
        if tl.max(tl.max(broken.to(tl.int32), 1), 0) > 0:
            tl.store(written, False)
    else:
        narrow: tl.constexpr = M.dtype.element_ty
        stored = new.to(narrow)
        if WEIGHT is not None:
            stored = tl.where(is_unset(written, BLOCK_L, BLOCK_Q), base.to(narrow), stored)
            there = there & apply
        tl.store(M + where, stored, mask=there)


@functools.cache
def _form(case: Operands, accumulate: bool, check: bool = False) -> Configuration:
    # Of a stored weight, 120 registers a thread on sm_80 and sm_90, so that four programs share a
    # multiprocessor; 64 x 128 entries or 32 columns at a time take 150 to 200. Of an updated weight, 128
    # contiguous bytes a row of a narrow format; the three passes of a product leave registers for two
    # programs on a multiprocessor.
    rows, warps = (64, 4) if case.rule is None else (32, 8)
    return configuration(
        rebuild_kernel,
        case,
        dict.fromkeys(("A", "s", "B"), "*fp32")
        | dict.fromkeys(("ok", "written") if check else ("written",), "*i1")
        | {"step": "*i64", "seed": "i64"},
        "l q t A_s1 B_s1",
        {
            # As the step has them: weights by rows, factors by columns.
            **dict.fromkeys(("A_s0", "B_s0"), 1),
            "ACCUMULATE": accumulate,
            "DROPPED": DROPPED_BITS.get(case.weight, 0),
            "CHECK": check,
            "BLOCK_L": rows,
            "BLOCK_Q": 64,
            "BLOCK_T": 16,
            "PRECISION": PRECISION,
        },
        "largest" if check else "",
        num_warps=warps,
    )


# Of an updated weight, added to or in its place, guarded or not; of the variants those into narrow formats.
CONFIGURATIONS = [
    *(
        _form(Operands(dtype), accumulate, check)
        for check, formats in ((False, POINTERS), (True, DROPPED_BITS))
        for dtype, accumulate in itertools.product(formats, (False, True))
    ),
    *(
        _form(case._replace(guarded=accumulate), accumulate, check)
        for other_variant, (single, half, double_byte) in examples(current=True)
        for case, accumulate, check in [
            (single, True, False),
            (single, False, False),
            (half, True, False),
            (double_byte, True, True),
        ][2 * other_variant :]
    ),
]


def rebuild_(
    M: Tensor, A: Tensor, s: Tensor, B: Tensor, ok: Tensor, step: Tensor, accumulate: bool, seed: int
) -> Tensor:
    """In place, and only where ``ok``. See :func:`lip_fast.ops.rebuild_`."""
    return _rebuild(Source(M), M.dtype in DROPPED_BITS, A, s, B, ok, step, accumulate, seed)


def update_rebuild_(updated: Updated, *factors_and_how: Any) -> Tensor:
    """In place. See :func:`lip_fast.ops.update_rebuild_`."""
    # Only float16 can overflow here: its range is far smaller than that of the sums.
    return _rebuild(Source.current(updated), updated.M.dtype == torch.float16, *factors_and_how)


def _rebuild(
    source: Source,
    checked: bool,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    M, found_inf = source.M, source.scaling.found_inf
    written = ok.clone() if found_inf is None else ok & (found_inf == 0)
    if not M.numel():
        return written
    (l, q), case = M.shape, source.operands()
    given = {"A": A, "s": s.contiguous(), "B": B, "step": step, "seed": seed, "l": l, "q": q, "t": len(s)}
    given |= {"written": written, **strides("A", A), **strides("B", B), **source.arguments()}
    write = _form(case, accumulate)
    tile = write.constexprs
    grid = (triton.cdiv(l, tile["BLOCK_L"]) * triton.cdiv(q, tile["BLOCK_Q"]),)
    if checked:
        _form(case, accumulate, True).launch(grid, ok=ok, largest=torch.finfo(M.dtype).max, **given)
    write.launch(grid, **given)
    return written
