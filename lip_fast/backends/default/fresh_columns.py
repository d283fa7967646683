"""Fresh test columns: random signs from a counter, the same bits on every machine.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counter
(row, step, column block, 0), key = seed. One call gives 128 bits, so a column block is 128 columns: column
c of a block is bit c % 32 of word c // 32, and a set bit means +1.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 128  # bits, hence columns, of one Philox call
_STEPS = 8  # steps made at a time; their counters still fit the cache at a few thousand rows


def philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Philox4x32-10 of n counters under a 64-bit key.

    Args:
        counter: (4, n), 32-bit words held in uint64.
        seed: the key, low word first.

    Returns:
        (4, n) random 32-bit words held in uint64.
    """
    key = np.array([[seed & 0xFFFFFFFF], [(seed >> 32) & 0xFFFFFFFF]], dtype=np.uint64)
    even, odd = counter[0::2], counter[1::2]
    for _ in range(10):
        product = (even * _MULTIPLIERS)[::-1]
        even = product >> _HALF
        even ^= odd
        even ^= key
        odd = product & _WORD
        key = (key + _WEYL) & _WORD
    return np.stack([even[0], odd[0], even[1], odd[1]])


def fresh_columns(step: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float32 of +-1. See :func:`lip_fast.ops.fresh_columns`."""
    chunk, offset = divmod(int(step) & 0xFFFFFFFF, _STEPS)
    signs = torch.from_numpy(_signs(chunk, rows, columns, seed)[offset])
    return signs.to(device=step.device, dtype=torch.float32).mT


@lru_cache(maxsize=8)
def _signs(chunk: int, rows: int, columns: int, seed: int) -> NDArray[np.int8]:
    """(_STEPS, columns, rows) of +-1 for a run of steps: each numpy operation is started once for all."""
    blocks = -(-columns // _BLOCK)
    words = np.empty((_STEPS * rows, 4 * blocks), dtype="<u4")
    counter = np.zeros((4, _STEPS * rows), dtype=np.uint64)
    counter[0] = np.tile(np.arange(rows, dtype=np.uint64), _STEPS)
    counter[1] = np.repeat(np.arange(chunk * _STEPS, (chunk + 1) * _STEPS, dtype=np.uint64), rows)
    for block in range(blocks):
        counter[2] = block
        words[:, 4 * block : 4 * block + 4] = philox(counter, seed).T
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, :columns]
    signs = bits.astype(np.int8)
    signs *= 2
    signs -= 1
    return np.ascontiguousarray(signs.reshape(_STEPS, rows, columns).transpose(0, 2, 1))
