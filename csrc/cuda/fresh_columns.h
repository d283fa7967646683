#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lip_fast::cuda {

/// As lip_fast::cpu::fresh_columns, with the step read on the device.
void fresh_columns(float* out, std::int64_t rows, std::int64_t columns, const std::int64_t* step,
                   std::uint64_t seed, cudaStream_t stream);

}  // namespace lip_fast::cuda
