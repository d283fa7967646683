// Runs the stages of a warm SVD as kernels on a stream.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/warm_pipeline.h"
#include "cuda/launch.h"
#include "cuda/stages.h"

namespace lip_fast::cuda {

class StreamLauncher {
 public:
  explicit StreamLauncher(cudaStream_t stream)
      : stream_(stream), multiprocessors_(device_attribute(cudaDevAttrMultiProcessorCount)) {}

  /// At most one block a multiprocessor: each holds the factor of its pass in shared memory.
  int blocks(std::int64_t rows, int m) const {
    return static_cast<int>(std::min<std::int64_t>(tiles(rows, m), multiprocessors_));
  }
  void gram(const Tall<const float>& X, int m, float* partials, int blocks) {
    cuda::gram(X, m, partials, blocks, stream_);
  }
  void reduce(const float* partials, int count, int m, float* sum) { cuda::reduce(partials, count, m, sum, stream_); }
  void pass(const Pass<float>& a, int blocks) { cuda::pass(a, blocks, stream_); }
  void apply(const Apply<float>& a, int blocks) { cuda::apply(a, blocks, stream_); }
  void solve(const Solve<float>& a) { cuda::solve(a, stream_); }
  void judge(const float* G, int count, int t, const int* info, std::int64_t* status) {
    cuda::judge(G, count, t, info, status, stream_);
  }

 private:
  cudaStream_t stream_;
  int multiprocessors_;
};

}  // namespace lip_fast::cuda
