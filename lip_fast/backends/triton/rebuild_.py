"""Write the weight, each entry once: M = A diag(s) B^T, or M += A diag(s) B^T, where a flag says so.

M (l, q) float32, bfloat16 or float16; A (l, t), s (t,), B (q, t) float32; any strides. Products are taken and
added up in float32. Into the narrow formats the sum is rounded stochastically by bits of (seed, step), the
same as those of csrc/core/round.h. Grid: tiles of M.

Nothing is written where an entry would not be finite in a narrow format, so a pass before the write looks for
one. It multiplies out only tiles that are not cleared by the bound sum_k max_i |a_ik| |s_k| max_j |b_jk|, and
reads M only where M is added to.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.default.rebuild_ import DROPPED_BITS
from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.philox import round_stochastically, rounding_noise
from lip_fast.backends.triton.update import offsets


@triton.jit
def _factors(A, s, B, row, column, k, l, q, t, a_row, a_column, b_row, b_column):
    """Columns k of both factors for the rows and columns of a tile: A diag(s) (L, T) and B^T (T, Q)."""
    a = tl.load(
        A + offsets(row, k, a_row, a_column),
        mask=(row[:, None] < l) & (k[None, :] < t),
        other=0.0,
    )
    b = tl.load(
        B + offsets(k, column, b_column, b_row),
        mask=(column[None, :] < q) & (k[:, None] < t),
        other=0.0,
    )
    return a * tl.load(s + k, mask=k < t, other=0.0)[None, :], b


@triton.jit
def _tile(
    M, A, s, B, step, seed, row, column, first_column, l, q, t,
    m_row, m_column, a_row, a_column, b_row, b_column,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, L: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The new entries of a tile (L, Q) in float32, rounded to the format of M."""
    new = tl.zeros((L, Q), tl.float32)
    for first in range(0, t, T):
        k = first + tl.arange(0, T)
        a, b = _factors(A, s, B, row, column, k, l, q, t, a_row, a_column, b_row, b_column)
        # Three products of TF32 parts hold float32 to a few units of the last place, at several times the
        # speed of float32 arithmetic; one would leave 5e-4 of noise in a weight that is written every step.
        new = tl.dot(a, b, new, input_precision="tf32x3")
    if ACCUMULATE:
        there = (row[:, None] < l) & (column[None, :] < q)
        new += tl.load(M + offsets(row, column, m_row, m_column), mask=there, other=0.0)
    if DROPPED > 0:
        noise = rounding_noise(row, first_column, tl.load(step), seed, Q)
        new = round_stochastically(new, noise, DROPPED)
    return new


@triton.jit
def _place(q, L: tl.constexpr, Q: tl.constexpr):
    """Rows (L,) and columns (Q,) of this program's tile, and the first of its columns."""
    tiles = tl.cdiv(q, Q)
    first_column = (tl.program_id(0) % tiles).to(tl.int64) * Q
    row = (tl.program_id(0) // tiles).to(tl.int64) * L + tl.arange(0, L)
    return row, first_column + tl.arange(0, Q), first_column


@triton.jit(do_not_specialize=["seed"])
def rebuild_kernel(
    M, A, s, B, written, step, seed, l, q, t, m_row, m_column, a_row, a_column, b_row, b_column,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, L: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write one tile of M where ``written``."""
    if tl.load(written):
        row, column, first_column = _place(q, L, Q)
        new = _tile(
            M, A, s, B, step, seed, row, column, first_column, l, q, t,
            m_row, m_column, a_row, a_column, b_row, b_column, ACCUMULATE, DROPPED, L, Q, T,
        )  # fmt: skip
        there = (row[:, None] < l) & (column[None, :] < q)
        entry = M + offsets(row, column, m_row, m_column)
        tl.store(entry, new.to(M.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["seed"])
def rebuild_fits_kernel(
    M, A, s, B, ok, written, step, seed, l, q, t, m_row, m_column, a_row, a_column, b_row, b_column, largest,
    ACCUMULATE: tl.constexpr, DROPPED: tl.constexpr, L: tl.constexpr, Q: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Set ``written`` to False where an entry of this tile would not be finite in the format of M.

    ``largest`` is its largest number. Several programs may store the same False.
    """
    if tl.load(ok):
        row, column, first_column = _place(q, L, Q)
        there = (row[:, None] < l) & (column[None, :] < q)
        bound = 0.0
        for first in range(0, t, T):
            k = first + tl.arange(0, T)
            a, b = _factors(A, s, B, row, column, k, l, q, t, a_row, a_column, b_row, b_column)
            # A maximum passes over NaN.
            a_most = tl.max(tl.where(a == a, tl.abs(a), float("inf")), 0)
            b_most = tl.max(tl.where(b == b, tl.abs(b), float("inf")), 1)
            bound += tl.sum(a_most * b_most)
        if ACCUMULATE:
            m = tl.load(M + offsets(row, column, m_row, m_column), mask=there, other=0.0)
            m = m.to(tl.float32)
            bound += tl.max(tl.max(tl.where(m == m, tl.abs(m), float("inf")), 1), 0)
        # Half of the range: rounding is far less. NaN is not cleared either.
        cleared = bound < 0.5 * largest
        if cleared == 0:
            new = _tile(
                M, A, s, B, step, seed, row, column, first_column, l, q, t,
                m_row, m_column, a_row, a_column, b_row, b_column, ACCUMULATE, DROPPED, L, Q, T,
            )  # fmt: skip
            # Rounded as it is, an entry is out of range where it is beyond the largest number. So is NaN.
            broken = there & ((tl.abs(new) <= largest) == 0)
            if tl.max(tl.max(broken.to(tl.int32), 1), 0) > 0:
                tl.store(written, False)


_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# 120 registers a thread on sm_80 and sm_90, so that four programs share a multiprocessor; 64 x 128 entries or
# 32 columns at a time take 150 to 200.
_TILE = {"L": 64, "Q": 64, "T": 16}


def _form(kernel: triton.JITFunction, dtype: torch.dtype, accumulate: bool) -> Configuration:
    factors = {name: "*fp32" for name in ("A", "s", "B")}
    flags = {name: "*i1" for name in ("ok", "written") if name in kernel.arg_names}
    numbers = dict.fromkeys(
        ("l", "q", "t", "m_row", "m_column", "a_row", "a_column", "b_row", "b_column"), "i32"
    )
    limit = {"largest": "fp32"} if "largest" in kernel.arg_names else {}
    # As the step has them: weights by rows, factors by columns.
    unit = {"m_column": 1, "a_row": 1, "b_row": 1}
    return Configuration(
        kernel,
        {
            name: kind
            for name, kind in {
                "M": _TYPES[dtype], **factors, **flags, "step": "*i64", "seed": "i64", **numbers, **limit
            }.items()
            if name not in unit
        },
        {"ACCUMULATE": accumulate, "DROPPED": DROPPED_BITS.get(dtype, 0), **_TILE, **unit},
    )  # fmt: skip


_WRITE = {(dtype, add): _form(rebuild_kernel, dtype, add) for dtype in _TYPES for add in (False, True)}
_FITS = {
    (dtype, add): _form(rebuild_fits_kernel, dtype, add) for dtype in DROPPED_BITS for add in (False, True)
}
CONFIGURATIONS = [*_WRITE.values(), *_FITS.values()]


def rebuild_(
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    accumulate: bool,
    seed: int,
) -> Tensor:
    """In place, and only where ``ok``. See :func:`lip_fast.ops.rebuild_`."""
    written = ok.clone()
    if not M.numel():
        return written
    (l, q), t = M.shape, A.shape[1]
    names = ("m_row", "m_column", "a_row", "a_column", "b_row", "b_column")
    arguments = {
        "M": M,
        "A": A,
        "s": s.contiguous(),
        "B": B,
        "written": written,
        "step": step,
        "seed": seed,
        "l": l,
        "q": q,
        "t": t,
        **dict(zip(names, (*M.stride(), *A.stride(), *B.stride()), strict=True)),
    }
    grid = (triton.cdiv(l, _TILE["L"]) * triton.cdiv(q, _TILE["Q"]),)
    if M.dtype in DROPPED_BITS:
        largest = torch.finfo(M.dtype).max
        _FITS[M.dtype, accumulate].launch(grid, **arguments, ok=ok, largest=largest)
    _WRITE[M.dtype, accumulate].launch(grid, **arguments)
    return written
