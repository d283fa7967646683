#include "cuda/launch.h"
#include "cuda/stages.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kMaxThreads = 512;

__global__ void __launch_bounds__(kMaxThreads, 1) solve_kernel(Solve<float> arguments) {
  BlockTeam team;
  solve_block(team, arguments, shared_memory<float>());
}

}  // namespace

void solve(const Solve<float>& arguments, cudaStream_t stream) {
  Solve<float> a = arguments;
  const auto bytes = [&a](bool spacious) { return sizeof(float) * solve_shared(a.m, spacious); };
  const auto limit = static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  a.spacious = bytes(true) <= limit;
  // One group a pair of columns, and a few warps at least for the factorisation.
  const int threads = a.m <= 64 ? 256 : kMaxThreads;
  launch("solve", solve_kernel, 1, threads, bytes(a.spacious), stream, a);
}

}  // namespace lip_fast::cuda
