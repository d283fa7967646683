#pragma once

#include <cuda_runtime.h>

#include "core/refit.h"

namespace lip_fast::cuda {

template <class T>
void refit(const Refit<T>& arguments, cudaStream_t stream);

}  // namespace lip_fast::cuda
