#include "cuda/small_svd.h"

#include "cuda/launch.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kMaxThreads = 512;

__global__ void __launch_bounds__(kMaxThreads, 1) small_svd_kernel(SmallSvd<float> a) {
  BlockTeam team;
  small_svd_block(team, nth(a, blockIdx.x), shared_memory<float>());
}

}  // namespace

void small_svd(const SmallSvd<float>& first, std::int64_t batch, cudaStream_t stream) {
  if (batch == 0) return;
  SmallSvd<float> a = first;
  const auto bytes = [&a](bool spacious) { return sizeof(float) * small_svd_shared(a.m, spacious); };
  const auto limit = static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  a.spacious = bytes(true) <= limit;
  // One group for each pair of columns, in whole warps.
  const int groups = (a.m + 1) / 2, threads = (groups * BlockTeam::kLanes + 31) / 32 * 32;
  launch("small_svd", small_svd_kernel, static_cast<unsigned>(batch), threads, bytes(a.spacious), stream, a);
}

}  // namespace lip_fast::cuda
