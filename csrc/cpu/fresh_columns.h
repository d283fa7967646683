#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// Random signs (rows, columns), columns contiguous and ``rows`` apart; entry (i, c) depends on
/// (seed, step, i, c) alone. ``out`` holds rows * columns values.
void fresh_columns(float* out, std::int64_t rows, std::int64_t columns, std::int64_t step, std::uint64_t seed);

}  // namespace lip_fast::cpu
