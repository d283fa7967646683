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

/// An attribute of the current device; the runtime keeps them at hand.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "device attribute");
  return value;
}

/// Launches with ``bytes`` of dynamic shared memory. More than 48 kB must be asked for, which is no operation of the
/// stream: it is allowed, and changes nothing, while a graph is captured.
template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t bytes,
            cudaStream_t stream, Arguments... arguments) {
  constexpr std::size_t kAlwaysThere = 48 * 1024;
  if (bytes > kAlwaysThere) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), what);
  }
  kernel<<<grid, threads, bytes, stream>>>(arguments...);
  check(cudaGetLastError(), what);
}

}  // namespace lip_fast::cuda
