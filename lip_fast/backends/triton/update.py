"""What the kernels of products share: tiles by shape, splits, flags and addresses.

The products are taken in three passes of tf32 ("tf32x3"), which keeps the digits of float32: a step that lost
those of tf32 would lose every update below 2^-12 of an entry. Next to the traffic of the weight and its state
the two more passes cost nothing, and on the tensor cores they are faster than float32 arithmetic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISION = "tf32x3"
# Rows from which tiles of 32 rows alone give every multiprocessor of an H100 (132) two programs.
_MANY_ROWS = 2 * 132 * 32
# Programs that smaller weights are split into, over the other dimension: two for each multiprocessor.
_PROGRAMS = 2 * 132
# Most parts of a sum: beyond, adding them up costs more than a longer loop.
_MOST_PARTS = 64
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


def signature(pointers: dict[str, str], integers: str, floats: str = "") -> dict[str, str]:
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
def recall(array, where, needed):
    """A tile of an array in float32, 0 where it is not needed and where there is no array."""
    if array is None:
        return tl.where(needed, 0.0, 0.0)
    else:
        return tl.load(array + where, mask=needed, other=0.0).to(tl.float32)
