// Launching from the host: errors become exceptions, streams come from the caller.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace lip_fast::cuda {

/// Throws what CUDA says went wrong, and where.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace lip_fast::cuda
