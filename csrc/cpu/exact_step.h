#pragma once

#include <cstdint>

#include "cpu/batch.h"

namespace lip_fast::cpu {

/// LIP on a float weight M (l, q) with one small side, d = min(l, q), decomposed exactly: the r directions below the top
/// k are refitted to a batch of class indices, and deeper ones removed or left alone. On one thread.
struct ExactStep {
  float* M;
  std::int64_t l, q, m_stride;  // m_stride: of its rows
  int k, r;                     // k + r <= d <= 128
  bool drop, clip;              // whether deeper directions are removed; whether refitted values are limited
  double tolerance;             // share of the largest singular value below which one is no direction's
  int vector_bytes;             // at most: 64, 32 or 16
  Batch batch;
  const float* bias;            // (l), or null

  int status;                   // written: bits of core/status.h
  bool applied;                 // written: whether M was
  std::int64_t clipped, masked;
};

void exact_step(ExactStep& step);

}  // namespace lip_fast::cpu
