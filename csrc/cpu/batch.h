#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// Rows of features with their class indices.
struct Batch {
  const float* X;  // (n, q), rows x_stride apart
  std::int64_t n, x_stride;
  const std::int64_t* y;  // (n)
  std::int64_t ignored;   // an index that is no error
};

}  // namespace lip_fast::cpu
