#include "cuda/round.h"

#include <algorithm>

#include "core/round.h"
#include "cuda/launch.h"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

// A thread rounds eight neighbours of one row.
__global__ void __launch_bounds__(kThreads)
    round_kernel(float* X, std::int64_t rows, std::int64_t columns, std::int64_t blocks, int dropped,
                 const std::int64_t* step, std::uint64_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < rows * blocks; e += stride) {
    const std::int64_t row = e / blocks, block = e % blocks;
    const Words words = rounding_bits(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(*step),
                                      static_cast<std::uint32_t>(block), seed);
    const std::int64_t first = block * kRoundedPerCall;
    float* const x = X + row * columns + first;
    for (int n = 0; n < kRoundedPerCall; ++n) {
      if (first + n < columns) x[n] = round_stochastically(x[n], words, n, dropped);
    }
  }
}

}  // namespace

void round(float* X, std::int64_t rows, std::int64_t columns, int dropped, const std::int64_t* step,
           std::uint64_t seed, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  const std::int64_t blocks = (columns + kRoundedPerCall - 1) / kRoundedPerCall;
  const std::int64_t grid = std::min<std::int64_t>((rows * blocks + kThreads - 1) / kThreads, 1 << 20);
  launch("round", round_kernel, static_cast<unsigned>(grid), kThreads, 0, stream, X, rows, columns, blocks, dropped, step,
         seed);
}

}  // namespace lip_fast::cuda
