#include "cpu/round.h"

#include "core/round.h"

namespace lip_fast::cpu {

LIP_FAST_MULTIVERSION void round(float* X, std::int64_t rows, std::int64_t columns, int dropped, std::int64_t step,
                                 std::uint64_t seed) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t first = 0; first < columns; first += kRoundedPerCall) {
      const Words words =
          rounding_bits(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(step),
                        static_cast<std::uint32_t>(first / kRoundedPerCall), seed);
      float* const x = X + row * columns + first;
      for (int n = 0; n < kRoundedPerCall && first + n < columns; ++n) {
        x[n] = round_stochastically(x[n], words, n, dropped);
      }
    }
  }
}

}  // namespace lip_fast::cpu
