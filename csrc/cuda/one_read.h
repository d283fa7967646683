#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lip_fast::cuda {

/// Whether M can be read as it lies in memory: 16 bytes at a time.
inline bool one_read_accepts(const float* M, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(M) % 16 == 0 && stride % 4 == 0;
}

/// Floats of workspace that ``one_read`` needs on the current device, or -1 where the device cannot run it for this
/// shape: columns up to 256 without clusters of blocks (before compute capability 9), up to 4096 with them.
///
/// The first call for a device loads and configures the kernels: it must not be made while a stream is captured.
std::int64_t one_read_workspace(std::int64_t rows, std::int64_t columns, int m);

/// Y = M V and Z = M^T Y from one read of M, two for m > 80 (on devices with 99 or 163 kB for a block, for m > 64):
/// products of tf32, sums in float32, Y rounded to tf32. What is not finite makes NaN of all that depends on it.
///
/// In memory: M (rows, columns) with ``stride`` floats from row to row, V (m, columns), Y (m, rows), Z (m, columns).
/// M must be as one_read_accepts says. The same input gives the same bits on the same device.
void one_read(const float* M, std::int64_t rows, std::int64_t columns, std::int64_t stride, const float* V, int m,
              float* Y, float* Z, float* workspace, std::int64_t workspace_size, cudaStream_t stream);

}  // namespace lip_fast::cuda
