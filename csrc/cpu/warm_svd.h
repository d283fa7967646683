// The truncated SVD of the GPU on one CPU thread: the same stages in the same order, slower than BLAS and LAPACK. It is
// there so that the arithmetic of the GPU can be tested on every machine.
#pragma once

#include <cstdint>

#include "core/warm_pipeline.h"

namespace lip_fast::cpu {

std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m);
void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace);
void warm_svd(const WarmSvd<float>& arguments);

}  // namespace lip_fast::cpu
