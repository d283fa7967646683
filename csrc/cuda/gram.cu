#include "cuda/launch.h"
#include "cuda/stages.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 1) gram_kernel(Tall<const float> X, int m, float* partials) {
  BlockTeam team;
  gram_block(team, X, m, partials, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), shared_memory<float>());
}

}  // namespace

void gram(const Tall<const float>& X, int m, float* partials, int blocks, cudaStream_t stream) {
  launch("gram", gram_kernel, blocks, kThreads, sizeof(float) * tile_size(m), stream, X, m, partials);
}

}  // namespace lip_fast::cuda
