"""What the kernels of the optimizers' updates share: tiles by shape, splits, flags, and the write of a tile.

The products are taken in three passes of tf32 ("tf32x3"), which keeps the digits of float32: a step that lost
those of tf32 would lose every update below 2^-12 of an entry. Next to the traffic of the weight and its state
the two more passes cost nothing, and on the tensor cores they are faster than float32 arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.philox import round_stochastically, rounding_noise

PRECISION = "tf32x3"
# Rows from which tiles of 32 rows alone give every multiprocessor of an H100 (132) two programs.
_MANY_ROWS = 2 * 132 * 32
# Programs that smaller weights are split into, over the other dimension: two for each multiprocessor.
_PROGRAMS = 2 * 132
# Most parts of a sum: beyond, adding them up costs more than a longer loop.
_MOST_PARTS = 64
# Bits of a float32 mantissa that the narrow formats lack.
DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
# Of the weight: 128 contiguous bytes a row of a narrow format; the three passes of a product
# leave registers for two programs on a multiprocessor.
TILE = {"BLOCK_L": 32, "BLOCK_Q": 64, "BLOCK_T": 16, "PRECISION": PRECISION}
TILE_WARPS = 8
# All there are: left to itself, ptxas spills a few for the sake of one more program on a multiprocessor.
REGISTERS = 255
# Of a dtype, as Triton spells a pointer to it.
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def padded(m: int) -> int:
    """Columns of a tile that holds m: a power of two, and no less than tensor cores take."""
    return max(16, triton.next_power_of_2(m))


def many(l: int) -> bool:
    """Whether the rows alone keep the device busy."""
    return l >= _MANY_ROWS


def parts(blocks: int, length: int, block: int) -> tuple[int, int]:
    """How a loop over ``length`` is split so that ``blocks`` programs become enough.

    Returns:
        Number of parts, and of steps of ``block`` that each part takes; there may be none for the last steps.
    """
    steps = max(triton.cdiv(length, block), 1)
    wanted = min(triton.cdiv(_PROGRAMS, max(blocks, 1)), _MOST_PARTS, steps)
    each = triton.cdiv(steps, wanted)
    return triton.cdiv(steps, each), each


def total(partial: Tensor) -> Tensor:
    """(parts, m, n) summed in a fixed order: (n, m) with contiguous columns."""
    return (partial[0] if len(partial) == 1 else partial.sum(0)).mT


def strides(name: str, X: Tensor) -> dict[str, int]:
    """As arguments of a kernel: ``name_s0`` and ``name_s1``."""
    return {f"{name}_s0": X.stride(0), f"{name}_s1": X.stride(1)}


def signature(pointers: dict[str, str], integers: str, floats: str) -> dict[str, str]:
    """Types of the arguments of a kernel: pointers as given, then names of integers and of floats."""
    return pointers | dict.fromkeys(integers.split(), "i32") | dict.fromkeys(floats.split(), "fp32")


@triton.jit
def is_unset(flag, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether an optional scalar in memory is 0 or not there, as a tile.

    The tile first, and then the comparison: what comes of one is spread wrongly by Triton's interpreter
    (3.9).
    """
    if flag is None:
        return tl.zeros((ROWS, COLUMNS), tl.int32) == 0
    else:
        return tl.broadcast_to(tl.load(flag).to(tl.float32), (ROWS, COLUMNS)) == 0


@triton.jit
def offsets(rows, columns, s0, s1):
    """Of a tile, in 64 bits: weights of 2^31 entries are there."""
    return rows[:, None].to(tl.int64) * s0 + columns[None, :].to(tl.int64) * s1


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


def representative(form: Any, **flags: Any) -> list[Any]:
    """The forms to compile ahead: the usual and the widest, each with many rows and few; narrow formats.

    A kernel lists them without options and with all of them at once, which takes most registers.
    """
    single, half = torch.float32, torch.bfloat16
    return [
        form((single, single, single), 64, True, **flags),
        form((single, single, single), 128, True, **flags),
        form((single, single, single), 64, False, **flags),
        form((single, single, single), 128, False, **flags),
        form((half, half, half), 64, True, **flags),
    ]


def rebuild_forms(form: Any) -> list[Any]:
    """Those of a kernel that writes the weight."""
    single, half, double_byte = torch.float32, torch.bfloat16, torch.float16
    return [
        form((single, single, single), True, True),
        form((single, single, single), False, False),
        form((half, half, half), True, True),
        form((double_byte, single, single), True, True, True),
    ]


def run_rebuild(
    form: Callable[[bool], Configuration],
    M: Tensor,
    A: Tensor,
    s: Tensor,
    B: Tensor,
    ok: Tensor,
    step: Tensor,
    found_inf: Tensor | None,
    seed: int,
    **rule: Any,
) -> Tensor:
    """Launch the kernel that writes the weight, ``form(check)``, with the arguments of its update.

    Returns () bool: whether the factors were written.
    """
    written = ok.clone() if found_inf is None else ok & (found_inf == 0)
    if not M.numel():
        return written
    (l, q), t = M.shape, A.shape[1]
    grid = (triton.cdiv(l, TILE["BLOCK_L"]) * triton.cdiv(q, TILE["BLOCK_Q"]),)
    arguments = {
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
        **rule,
    }
    # Only float16 can overflow here: its range is far smaller than that of the sums.
    for check in (True, False) if M.dtype == torch.float16 else (False,):
        form(check).launch(grid, **arguments)
    return written
