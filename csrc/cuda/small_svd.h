#pragma once

#include <cuda_runtime.h>

#include "core/small_svd.h"

namespace lip_fast::cuda {

/// A block for each of ``batch`` matrices, which lie one after another, as do all outputs and ``work``.
void small_svd(const SmallSvd<float>& first, std::int64_t batch, cudaStream_t stream);

}  // namespace lip_fast::cuda
