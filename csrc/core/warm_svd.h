// Truncated SVD of M (l, q) from the products Y = M V (l, m) and Z = M^T Y (q, m), by small matrices alone:
//
//   Y = Q R                    two passes of Cholesky QR
//   Z' = Z R^-1 = M^T Q        no further read of M
//   Z' = P T                   two passes of Cholesky QR
//   T = U S V_T^T              one-sided Jacobi
//   A = Q V_T, B = P U         so that M ~ A S B^T
//
// The second factor of each Cholesky QR is not multiplied out: it is folded into the small matrices W_A and W_B.
#pragma once

#include <cstdint>

#include "core/cholesky.h"
#include "core/config.h"
#include "core/small_svd.h"
#include "core/status.h"
#include "core/tall.h"

namespace lip_fast {

/// What the stages leave behind for the last one to judge.
enum Info : int { kPassV, kPassY, kPassZ, kPassP, kSolve, kSweeps, kDirections, kInfos };

template <class T>
struct Solve {
  int m, t;
  const T* partials;  // (count, m, m): Gram matrix of Z' after one pass
  int count;
  const T* R;        // (m, m): factor of that pass
  const T* inverse;  // (m, m): P of the second pass over Y
  T* work;           // (2, m, m)
  bool spacious;     // shared memory holds two buffers; else the second is in ``work``
  T* S;              // (t)
  T *W_A, *W_B;      // (m, t)
  int* info;         // kInfos
};

LIP_FAST_FN int solve_shared(int m, bool spacious) { return (spacious ? 2 : 1) * m * pitch(m) + 4 * m; }

/// One block. shared: solve_shared(m, spacious) values.
template <class Team, class T>
LIP_FAST_FN void solve_block(Team& team, const Solve<T>& a, T* shared) {
  const int m = a.m, ld = pitch(m);
  T* scale = shared;
  T* pivot = scale + m;
  T* s = pivot + m;
  int* order = reinterpret_cast<int*>(s + m);
  T* X = s + 2 * m;
  T* second_inverse = a.work;
  // First the factors of the last pass, then the right singular vectors.
  T* V = a.spacious ? X + m * ld : a.work + m * m;
  const int ldv = a.spacious ? ld : m;
  sum_partials(team, a.partials, a.count, m, V, ldv);
  const int independent = factor(team, V, m, ldv, scale, pivot);
  if (independent < 0) {
    for (int j = team.rank(); j < m; j += team.size()) pivot[j] = scale[j] = T(0);
    team.sync();
  }
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e % m, j = e / m;
    T sum = 0;
    for (int k = i; k <= j; ++k) sum += upper(V, ldv, scale, pivot, i, k) * a.R[k * m + j];
    X[j * ld + i] = sum;
    second_inverse[i * m + j] = inverse(V, ldv, scale, pivot, i, j);
  }
  team.sync();
  set_identity(team, V, m, ldv);
  const T largest = normalise(team, X, m, ld);
  const int sweeps = rotate_columns(team, X, m, ld, V, m, ldv, m);
  sort_columns(team, X, m, m, ld, s, order);
  for (int e = team.rank(); e < m * a.t; e += team.size()) {
    const int i = e / a.t, c = e % a.t, column = order[c];
    const T length = s[column];
    T of_A = 0, of_B = 0;
    for (int k = i; k < m; ++k) {
      of_A += a.inverse[i * m + k] * V[column * ldv + k];
      of_B += second_inverse[i * m + k] * X[column * ld + k];
    }
    a.W_A[e] = of_A;
    a.W_B[e] = length > T(0) ? of_B / length : T(0);
  }
  T directions = 0;
  for (int c = team.rank(); c < a.t; c += team.size()) {
    const T length = s[order[c]];
    a.S[c] = largest * length;
    directions += length > T(0) ? T(1) : T(0);
  }
  directions = team.sum(directions);
  if (team.rank() == 0) {
    a.info[kSolve] = independent;
    a.info[kSweeps] = sweeps;
    a.info[kDirections] = static_cast<int>(directions);
  }
}

/// Judges the decomposition. One block; G: (count, t, t) partial sums of B^T B.
template <class Team, class T>
LIP_FAST_FN void judge_block(Team& team, const T* G, int count, int t, const int* info, std::int64_t* status) {
  T deviation = 0, broken = 0;
  for (int e = team.rank(); e < t * t; e += team.size()) {
    T sum = 0;
    for (int b = 0; b < count; ++b) sum += G[static_cast<std::int64_t>(b) * t * t + e];
    if (!is_finite(sum)) broken = 1;
    deviation = larger(deviation, absolute(sum - (e / t == e % t ? T(1) : T(0))));
  }
  deviation = team.max(deviation);
  broken = team.max(broken);
  if (team.rank() != 0) return;
  for (int i = kPassY; i <= kSolve; ++i) broken = info[i] < 0 ? T(1) : broken;
  int word = kSound;
  if (broken != T(0)) {
    word = kNotFinite;  // and nothing else can be said
  } else {
    if (info[kDirections] < t) word |= kRankDeficient;
    if (info[kSweeps] < 0) word |= kNotConverged;
    // A basis that is short of directions has zero columns, which is no failure of its own.
    if (!(deviation <= orthogonality<T>()) && !(word & kRankDeficient)) word |= kNotOrthogonal;
  }
  *status = word;
}

}  // namespace lip_fast
