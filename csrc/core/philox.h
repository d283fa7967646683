// Philox4x32-10: random bits from a counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). The same bits on every device, and a thread makes just the ones it needs.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace lip_fast {

struct Words {
  std::uint32_t word[4];
};

/// Ten rounds over a 128-bit counter under a 64-bit key, low word first.
LIP_FAST_FN Words philox(Words counter, std::uint64_t key) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t* c = counter.word;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(c[0]) * 0xD2511F53u;
    const std::uint64_t p1 = static_cast<std::uint64_t>(c[2]) * 0xCD9E8D57u;
    const std::uint32_t odd = c[1];
    c[0] = static_cast<std::uint32_t>(p1 >> 32) ^ odd ^ k0;
    c[2] = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<std::uint32_t>(p1);
    c[3] = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

/// Columns of random signs that one call serves: a column is one of its 128 bits.
constexpr int kSignsPerCall = 128;

/// The bits that decide the signs of columns 128 block .. 128 block + 127 in one row at one step.
LIP_FAST_FN Words sign_bits(std::uint32_t row, std::uint32_t step, std::uint32_t block, std::uint64_t seed) {
  return philox(Words{{row, step, block, 0}}, seed);
}

/// +1 where the bit of ``column`` within its block is set, else -1.
LIP_FAST_FN float sign(const Words& bits, int column) {
  return (bits.word[column / 32] >> (column % 32)) & 1u ? 1.0f : -1.0f;
}

}  // namespace lip_fast
