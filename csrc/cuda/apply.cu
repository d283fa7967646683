#include "cuda/launch.h"
#include "cuda/stages.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 1) apply_kernel(Apply<float> arguments) {
  BlockTeam team;
  apply_block(team, arguments, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), shared_memory<float>());
}

}  // namespace

void apply(const Apply<float>& arguments, int blocks, cudaStream_t stream) {
  launch("apply", apply_kernel, blocks, kThreads, sizeof(float) * apply_shared(arguments.m), stream, arguments);
}

}  // namespace lip_fast::cuda
