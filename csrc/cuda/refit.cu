#include "cuda/refit.h"

#include "cuda/launch.h"
#include "cuda/team.cuh"

namespace lip_fast::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads, 1) refit_kernel(Refit<T> arguments) {
  BlockTeam team;
  lip_fast::refit(team, arguments);
}

}  // namespace

template <class T>
void refit(const Refit<T>& arguments, cudaStream_t stream) {
  launch("refit", refit_kernel<T>, 1, kThreads, 0, stream, arguments);
}

template void refit<float>(const Refit<float>&, cudaStream_t);
template void refit<double>(const Refit<double>&, cudaStream_t);

}  // namespace lip_fast::cuda
