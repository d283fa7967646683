#include "cuda/warm_svd.h"

#include "cuda/launcher.h"

namespace lip_fast::cuda {

std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m) {
  return lip_fast::warm_workspace<float>(StreamLauncher(nullptr), l, q, m);
}

void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  lip_fast::orthonormal_start(launcher, V, l, q, m, workspace);
}

void warm_svd(const WarmSvd<float>& arguments, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  lip_fast::warm_svd(launcher, arguments);
}

}  // namespace lip_fast::cuda
