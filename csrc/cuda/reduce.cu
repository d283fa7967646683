#include "cuda/launch.h"
#include "cuda/stages.h"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 128;

// A thread an entry: blocks enough to read all partial sums at the speed of the cache.
__global__ void __launch_bounds__(kThreads) reduce_kernel(const float* partials, int count, int entries, float* sum) {
  const int e = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (e >= entries) return;
  float total = 0;
#pragma unroll 8
  for (int b = 0; b < count; ++b) total += partials[static_cast<std::int64_t>(b) * entries + e];
  sum[e] = total;
}

}  // namespace

void reduce(const float* partials, int count, int m, float* sum, cudaStream_t stream) {
  const int entries = m * m;
  launch("reduce", reduce_kernel, (entries + kThreads - 1) / kThreads, kThreads, 0, stream, partials, count, entries,
         sum);
}

}  // namespace lip_fast::cuda
