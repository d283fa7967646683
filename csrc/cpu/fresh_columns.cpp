#include "cpu/fresh_columns.h"

#include <algorithm>

#include "core/philox.h"

namespace lip_fast::cpu {

LIP_FAST_MULTIVERSION void fresh_columns(float* out, std::int64_t rows, std::int64_t columns,
                                         std::int64_t step, std::uint64_t seed) {
  for (std::int64_t first = 0; first < columns; first += kSignsPerCall) {
    const int width = static_cast<int>(std::min<std::int64_t>(kSignsPerCall, columns - first));
    const auto block = static_cast<std::uint32_t>(first / kSignsPerCall);
    for (std::int64_t i = 0; i < rows; ++i) {
      const Words bits = sign_bits(static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(step), block, seed);
      for (int c = 0; c < width; ++c) {
        out[(first + c) * rows + i] = sign(bits, c);
      }
    }
  }
}

}  // namespace lip_fast::cpu
