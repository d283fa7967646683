#pragma once

#include <cstdint>

#include "cpu/batch.h"

namespace lip_fast::cpu {

/// What a step by products finds of M; padded as in cpu/projected_room.h.
struct Factors {
  float* Q;      // (l, qp): Q, and what it is beside
  float* left;   // (l, both): A, and that of the rotated tail
  float* Z;      // (n + t, q): rows of M^T Q, and others
  float* right;  // (q, both): C, and B of the rotated tail
  float* S;      // (m) of the rotated tail
};

/// LIP on a float weight M (l, q) by products, for any number k of kept directions, wholly on this processor; what it
/// does is told in lip_fast/projected.py. With n = k - guards:
///
///   Y = M basis,  Q = Y R^-1 of its first n columns,  T orthonormal beside Q from the others and fresh signs
///   Z = M^T Q,  M^T T = C P^T by a small decomposition,  A = T P
///   both rotated until M^T maps Q and the tail to orthogonal spaces
///   the tail refitted to a batch of class indices, and M rebuilt
///
/// Where ``factors`` has addresses the step is no more than the decomposition.
///
/// The same bits for any number of threads. It writes nothing where anything is not as in a training: columns that depend
/// on others, numbers that are not finite.
struct ProjectedStep {
  std::int64_t l, q;
  int k, guards, r, fresh;    // kept, of those decomposed with the tail; refitted; fresh columns: guards + r + fresh <= 128
  float* M;
  std::int64_t m_stride;      // of its rows
  const float* basis;         // (k + r, q)
  std::uint64_t seed;         // of the fresh columns
  std::int64_t step;
  bool drop, clip;            // whether deeper directions are removed; whether refitted values are limited
  double tolerance;           // share of the largest singular value below which a value is no direction's
  double deepest;             // share of ||M||_F^2 below k + r directions from which on nothing is written
  int threads, vector_bytes;  // at most; vectors of 64, 32 or 16 bytes
  Batch batch;
  const float* bias;          // (l), or null

  Factors factors;            // written where they are not null
  float* following;           // (k + r, q), written: the basis of the next step
  int status;                 // written: bits of core/status.h
  bool applied;               // written: whether M was
  std::int64_t clipped, masked;
  double gamma, deeper;       // written: see lip_fast/projected.py
  float s_1, s_k;             // written: bounds of the kept singular values
};

void projected_step(ProjectedStep& step);

}  // namespace lip_fast::cpu
