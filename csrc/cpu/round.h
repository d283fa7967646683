#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// Rounds X (rows, columns), contiguous, in place to what ``dropped`` fewer mantissa bits hold; the bits come from
/// (seed, step, row, column) alone.
void round(float* X, std::int64_t rows, std::int64_t columns, int dropped, std::int64_t step, std::uint64_t seed);

}  // namespace lip_fast::cpu
