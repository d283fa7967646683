// The threads of a CUDA block as a team.
//
// Kernels over a team that have a multiprocessor to themselves say so in __launch_bounds__(threads, 1): registers would
// be rationed for more blocks otherwise, and spilled.
#pragma once

#include "core/team.h"

namespace lip_fast::cuda {

class BlockTeam {
 public:
  /// A quarter of a warp: three rounds of shuffles a sum, and the 64 pairs of 128 columns keep 16 warps busy.
  static constexpr int kLanes = 8;

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }

  template <class T>
  __device__ T max(T value) const {
    for (int step = 16; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, value, step);
      value = value < other ? other : value;
    }
    T* const all = exchange(value);
    for (int warp = 0; warp < size() / 32; ++warp) value = value < all[warp] ? all[warp] : value;
    return value;
  }
  template <class T>
  __device__ T sum(T value) const {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    T* const all = exchange(value);
    value = 0;
    for (int warp = 0; warp < size() / 32; ++warp) value += all[warp];
    return value;
  }
  template <class T>
  __device__ T lane_sum(T value) const {
    const unsigned lanes = 0xffu << (threadIdx.x % 32 / kLanes * kLanes);
    for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(lanes, value, step);
    return value;
  }

 private:
  /// One value of each warp, where all threads can read them.
  template <class T>
  __device__ T* exchange(T value) const {
    __shared__ T all[32];
    __syncthreads();  // until everyone has read the last ones
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = value;
    __syncthreads();
    return all;
  }
};

/// Dynamic shared memory as values of T, on a 16-byte boundary.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

}  // namespace lip_fast::cuda
