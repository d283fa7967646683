#include "cuda/launch.h"
#include "cuda/stages.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads, 1)
    judge_kernel(const float* G, int count, int t, const int* info, std::int64_t* status) {
  BlockTeam team;
  judge_block(team, G, count, t, info, status);
}

}  // namespace

void judge(const float* G, int count, int t, const int* info, std::int64_t* status, cudaStream_t stream) {
  launch("judge", judge_kernel, 1, kThreads, 0, stream, G, count, t, info, status);
}

}  // namespace lip_fast::cuda
