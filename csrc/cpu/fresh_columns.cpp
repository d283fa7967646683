#include "cpu/fresh_columns.h"

#include <algorithm>

#include "core/philox.h"

namespace lip_fast::cpu {

LIP_FAST_MULTIVERSION void fresh_columns(float* out, std::int64_t rows, std::int64_t columns,
                                         std::int64_t step, std::uint64_t seed) {
  constexpr int kRows = 64;  // rows at a time: as many lanes as a vector unit takes, a few times over
  for (std::int64_t first = 0; first < columns; first += kSignsPerCall) {
    const int width = static_cast<int>(std::min<std::int64_t>(kSignsPerCall, columns - first));
    const auto block = static_cast<std::uint32_t>(first / kSignsPerCall);
    for (std::int64_t row = 0; row < rows; row += kRows) {
      std::uint32_t word[4][kRows];
#pragma omp simd
      for (int r = 0; r < kRows; ++r) {
        const Words bits =
            sign_bits(static_cast<std::uint32_t>(row + r), static_cast<std::uint32_t>(step), block, seed);
        word[0][r] = bits.word[0];
        word[1][r] = bits.word[1];
        word[2][r] = bits.word[2];
        word[3][r] = bits.word[3];
      }
      const int count = static_cast<int>(std::min<std::int64_t>(kRows, rows - row));
      for (int c = 0; c < width; ++c) {
        float* const to = out + (first + c) * rows + row;
        const std::uint32_t* const from = word[c / 32];
        for (int r = 0; r < count; ++r) to[r] = sign(from[r], c % 32);
      }
    }
  }
}

}  // namespace lip_fast::cpu
