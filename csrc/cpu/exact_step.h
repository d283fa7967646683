#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// LIP on a float weight M (l, q) with one small side, d = min(l, q), decomposed exactly: the r directions below the top
/// k are refitted to a batch of class indices, and deeper ones removed or left alone.
struct ExactStep {
  float* M;
  std::int64_t l, q, m_stride;  // m_stride: of its rows
  std::int64_t k, r;            // k + r <= d
  bool drop, clip;              // whether deeper directions are removed; whether refitted values are limited
  double tolerance;             // share of the largest singular value below which one is no direction's

  const float* X;               // (n, q), rows x_stride apart
  std::int64_t n, x_stride;
  const std::int64_t* y;        // (n)
  std::int64_t ignored;         // an index that is no error
  const float* bias;            // (l), or null

  int status;                   // written: bits of core/status.h
  bool applied;                 // written: whether M was
  std::int64_t clipped, masked;
};

void exact_step(ExactStep& step);

}  // namespace lip_fast::cpu
