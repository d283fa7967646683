// Stochastic rounding of float32 to a format with fewer mantissa bits: up or down with the probability that makes the
// mean exact. Rounding to nearest loses every update below half a unit of the last place of the weight (2^-9 of it in
// bfloat16).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/config.h"
#include "core/philox.h"

namespace lip_fast {

/// Values that the 128 bits of one Philox call round: 16 bits each.
constexpr int kRoundedPerCall = 8;

/// Bits for columns 8 block .. 8 block + 7 of one row at one step; the last word keeps them apart from signs.
LIP_FAST_FN Words rounding_bits(std::uint32_t row, std::uint32_t step, std::uint32_t block, std::uint64_t seed) {
  return philox(Words{{row, step, block, 1}}, seed);
}

/// x with its last ``dropped`` bits zero, rounded by the n-th 16 bits of ``words``. What is not finite stays so.
LIP_FAST_FN float round_stochastically(float x, const Words& words, int n, int dropped) {
  const std::uint32_t noise = (words.word[n / 2] >> (n % 2 * 16)) & ((1u << dropped) - 1u);
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  bits = (bits + noise) & ~((1u << dropped) - 1u);
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace lip_fast
