#pragma once

#include <cstdint>

#include "cpu/batch.h"

namespace lip_fast::cpu {

/// LIP on a float weight M (l, q) by one power step from the last basis, wholly on this processor:
///
///   V = [basis, fresh signs without what the basis has of them]
///   M V = Q R,  Z = M^T Q,  Z = B diag(S) P^T by the eigenvectors of Z^T Z,  A = Q P
///   the tail refitted to a batch of class indices, and M rebuilt
///
/// The same bits for any number of threads. All columns are those of the leading directions, the largest one first.
struct TruncatedStep {
  std::int64_t l, q;
  int k, t, fresh;         // directions kept; those and the tail; fresh columns: t + fresh <= 128
  float* M;
  std::int64_t m_stride;   // of its rows
  const float* basis;      // (q, t)
  std::uint64_t seed;      // of the fresh columns
  std::int64_t step;
  bool drop, clip;         // whether deeper directions are removed; whether refitted values are limited
  double tolerance;        // share of S[0] below which a value is no direction's
  int threads, vector_bytes;  // at most; vectors of 64, 32 or 16 bytes

  Batch batch;
  const float* bias;       // (l), or null

  float* A;                // (l, t), written where it is not null: the step is then no more than the decomposition
  float* S;                // (t), written
  float* B;                // (q, t), written: the basis of the next step
  int status;              // written: bits of core/status.h
  bool applied;            // written: whether M was
  std::int64_t clipped, masked;
};

void truncated_step(TruncatedStep& step);

/// Bytes of the vectors that a step works with where they may have so many: of 64, 32 and 16 what the processor has.
int vector_bytes(int most);

}  // namespace lip_fast::cpu
