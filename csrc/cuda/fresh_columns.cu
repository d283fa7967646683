#include <algorithm>

#include "core/philox.h"
#include "cuda/fresh_columns.h"
#include "cuda/launch.h"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

// A thread serves one row of one block of columns: neighbours write neighbouring rows of each column.
__global__ void __launch_bounds__(kThreads)
    fresh_columns_kernel(float* out, std::int64_t rows, std::int64_t columns, const std::int64_t* step,
                         std::uint64_t seed) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kSignsPerCall;
  const Words bits = sign_bits(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(*step), blockIdx.y, seed);
  const std::int64_t left = columns - first;
  const int width = left < kSignsPerCall ? static_cast<int>(left) : kSignsPerCall;
  for (int c = 0; c < width; ++c) {
    out[(first + c) * rows + row] = sign(bits.word[c / 32], c % 32);
  }
}

}  // namespace

void fresh_columns(float* out, std::int64_t rows, std::int64_t columns, const std::int64_t* step,
                   std::uint64_t seed, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  const dim3 grid(static_cast<unsigned>((rows + kThreads - 1) / kThreads),
                  static_cast<unsigned>((columns + kSignsPerCall - 1) / kSignsPerCall));
  fresh_columns_kernel<<<grid, kThreads, 0, stream>>>(out, rows, columns, step, seed);
  check(cudaGetLastError(), "fresh_columns");
}

}  // namespace lip_fast::cuda
