#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/warm_pipeline.h"

namespace lip_fast::cuda {

/// Values of workspace on the current device.
std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m);
void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace, cudaStream_t stream);
void warm_svd(const WarmSvd<float>& arguments, cudaStream_t stream);

}  // namespace lip_fast::cuda
