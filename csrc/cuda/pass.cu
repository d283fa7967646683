#include "cuda/launch.h"
#include "cuda/stages.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 1) pass_kernel(Pass<float> arguments) {
  BlockTeam team;
  pass_block(team, arguments, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), shared_memory<float>());
}

}  // namespace

void pass(const Pass<float>& arguments, int blocks, cudaStream_t stream) {
  launch("pass", pass_kernel, blocks, kThreads, sizeof(float) * pass_shared(arguments.m), stream, arguments);
}

}  // namespace lip_fast::cuda
