#include "cpu/warm_svd.h"

#include "cpu/launcher.h"

namespace lip_fast::cpu {

std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m) {
  return lip_fast::warm_workspace<float>(SerialLauncher<float>(), l, q, m);
}

void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace) {
  SerialLauncher<float> launcher;
  lip_fast::orthonormal_start(launcher, V, l, q, m, workspace);
}

void warm_svd(const WarmSvd<float>& arguments) {
  SerialLauncher<float> launcher;
  lip_fast::warm_svd(launcher, arguments);
}

}  // namespace lip_fast::cpu
