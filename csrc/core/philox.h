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
  // Scalars, not an array: compilers vectorise over many counters only what has no address.
  std::uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(c0) * 0xD2511F53u;
    const std::uint64_t p1 = static_cast<std::uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

/// Columns of random signs that one call serves: a column is one of its 128 bits.
constexpr int kSignsPerCall = 128;

/// The bits that decide the signs of columns 128 block .. 128 block + 127 in one row at one step.
LIP_FAST_FN Words sign_bits(std::uint32_t row, std::uint32_t step, std::uint32_t block, std::uint64_t seed) {
  return philox(Words{{row, step, block, 0}}, seed);
}

/// +1 where a bit of a word is set, else -1.
LIP_FAST_FN float sign(std::uint32_t word, int bit) { return (word >> bit) & 1u ? 1.0f : -1.0f; }

}  // namespace lip_fast
