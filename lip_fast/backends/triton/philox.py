"""Random bits from a counter on the device, the same as those of the other backends to the bit.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the 64-bit key
``seed``, low word first. Counters: (row, step, column block of 128, 0) for random signs, as
:mod:`lip_fast.backends.default.fresh_columns` has them, and (row, step, column block of 8, 1) for stochastic
rounding, as csrc/core/round.h has them.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Ten rounds over counters of four 32-bit words; four random words.

    Args:
        c0: word of the counter, uint32, of a shape that the others broadcast to; likewise c1, c2, c3.
        c1: see c0.
        c2: see c0.
        c3: see c0.
        seed: the key, an integer >= 0 of 32 or 64 bits.

    Returns:
        Four blocks of uint32.
    """
    key = tl.cast(seed, tl.uint64)
    k0 = (key & 0xFFFFFFFF).to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = c0 * 0xD2511F53
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def rounding_noise(rows, first_column, step, seed, COLUMNS: tl.constexpr):
    """The 16 bits that round each entry of a tile.

    Args:
        rows: (R,) numbers of the rows, any integer dtype; their low 32 bits count.
        first_column: of the tile, a multiple of 8.
        step: the counter of the step; its low 32 bits count.
        seed: the key.
        COLUMNS: of the tile, a power of two and at least 8.

    Returns:
        (R, COLUMNS) uint32 below 2^16.
    """
    R: tl.constexpr = rows.shape[0]
    # One call of Philox serves eight neighbours of a row.
    block = (first_column // 8 + tl.arange(0, COLUMNS // 8)).to(tl.uint32)
    c2 = tl.broadcast_to(block[None, :], (R, COLUMNS // 8))
    c0 = tl.broadcast_to(rows[:, None].to(tl.uint32), (R, COLUMNS // 8))
    w0, w1, w2, w3 = philox(c0, tl.cast(step, tl.uint32), c2, 1, seed)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(words & 0xFFFF, words >> 16)


@triton.jit
def round_stochastically(x, noise, DROPPED: tl.constexpr):
    """x (float32) with its last DROPPED bits zero, rounded up where the noise carries into the next one.

    Up or down with the probability that makes the mean exact; what is not finite stays as it is.

    Args:
        x: block of float32.
        noise: block of uint32 of the same shape, of :func:`rounding_noise`.
        DROPPED: bits of the mantissa that the narrow format lacks: 16 for bfloat16, 13 for float16.

    Returns:
        Block of float32.
    """
    bits = x.to(tl.uint32, bitcast=True)
    carried = (bits + (noise & ((1 << DROPPED) - 1))) & (0xFFFFFFFF - ((1 << DROPPED) - 1))
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, carried, bits).to(tl.float32, bitcast=True)
