// The small SVD with its outputs in order, for m <= kMaxColumns.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/jacobi.h"
#include "core/real.h"
#include "core/status.h"

namespace lip_fast {

/// Widest problem that the solver takes: two float32 buffers of it fit the shared memory of a multiprocessor.
constexpr int kMaxColumns = 128;

/// Distance between the columns of a buffer in shared memory: 8 lanes of 4 neighbouring columns then read from 32
/// different banks.
LIP_FAST_FN int pitch(int m) { return m + (40 - m % 32) % 32; }

/// Scales X (m, m) by its largest entry, which is returned: squares then neither overflow nor underflow.
template <class Team, class T>
LIP_FAST_FN T normalise(Team& team, T* X, int m, int ld) {
  T largest = 0;  // what is not a number does not show here, but in the lengths of its column
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const T x = absolute(X[e / m * ld + e % m]);
    largest = larger(largest, x);
  }
  largest = team.max(largest);
  if (largest > T(0)) {
    for (int e = team.rank(); e < m * m; e += team.size()) X[e / m * ld + e % m] /= largest;
  }
  team.sync();
  return largest;
}

/// Lengths s of the columns of X (n, m) and their descending order: column ``order[i]`` is the i-th longest.
template <class Team, class T>
LIP_FAST_FN void sort_columns(Team& team, const T* X, int n, int m, int ld, T* s, int* order) {
  for (int j = team.rank(); j < m; j += team.size()) {
    T square = 0;
    for (int i = 0; i < n; ++i) square += X[j * ld + i] * X[j * ld + i];
    s[j] = square < no_length<T>() ? T(0) : square_root(square);  // as rotate_columns saw it
    order[j] = j;  // what is not a number has no place, but must not leave a gap
  }
  team.sync();
  for (int j = team.rank(); j < m; j += team.size()) {
    int place = 0;
    for (int i = 0; i < m; ++i) place += s[i] > s[j] || (s[i] == s[j] && i < j);
    if (is_finite(s[j])) order[place] = j;
  }
  team.sync();
}

/// X (m, m) = identity, column j at ``j * ld``.
template <class Team, class T>
LIP_FAST_FN void set_identity(Team& team, T* X, int m, int ld) {
  for (int e = team.rank(); e < m * m; e += team.size()) X[e / m * ld + e % m] = e / m == e % m ? T(1) : T(0);
}

/// Largest entry of |B^T B - I| of a basis that can be used. Sums of a few thousand rounded products give 1e-6; one that
/// is 1e-4 off is broken, not rounded.
template <class T>
LIP_FAST_FN T orthogonality() {
  return T(1e-4);
}

/// One of a batch of decompositions T = U diag(S) V^T, all matrices (m, m) with rows contiguous.
template <class T>
struct SmallSvd {
  const T* matrix;
  const T* start;  // orthogonal, near V; or null
  T *U, *S, *V;    // S descending; columns of U whose singular value is 0 are 0
  T* work;         // (m, m)
  int m;
  bool spacious;  // shared memory holds two buffers; else the second is ``work``
  std::int64_t* sweeps;
  std::int64_t* status;
};

/// The n-th of a batch whose matrices, values and words lie one after another.
template <class T>
LIP_FAST_FN SmallSvd<T> nth(SmallSvd<T> a, std::int64_t n) {
  const std::int64_t square = n * a.m * a.m;
  a.matrix += square;
  if (a.start != nullptr) a.start += square;
  a.U += square;
  a.S += n * a.m;
  a.V += square;
  a.work += square;
  a.sweeps += n;
  a.status += n;
  return a;
}

LIP_FAST_FN int small_svd_shared(int m, bool spacious) { return (spacious ? 2 : 1) * m * pitch(m) + 2 * m; }

/// shared: small_svd_shared(m, spacious) values.
template <class Team, class T>
LIP_FAST_FN void small_svd_block(Team& team, const SmallSvd<T>& a, T* shared) {
  const int m = a.m, ld = pitch(m), ldv = a.spacious ? ld : m;
  T* s = shared;
  int* order = reinterpret_cast<int*>(s + m);
  T* X = s + 2 * m;
  T* V = a.spacious ? X + m * ld : a.work;
  // Neighbours in rank read neighbouring entries of a row.
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e / m, j = e % m;
    if (a.start == nullptr) {
      X[j * ld + i] = a.matrix[e];
    } else {
      T sum = 0;
      for (int k = 0; k < m; ++k) sum += a.matrix[i * m + k] * a.start[k * m + j];
      X[j * ld + i] = sum;
      V[j * ldv + i] = a.start[e];
    }
  }
  if (a.start == nullptr) set_identity(team, V, m, ldv);
  team.sync();
  const T largest = normalise(team, X, m, ld);
  const int sweeps = rotate_columns(team, X, m, ld, V, m, ldv, m);
  sort_columns(team, X, m, m, ld, s, order);
  T broken = 0, directions = 0;
  for (int c = team.rank(); c < m; c += team.size()) {
    const T length = s[order[c]];
    a.S[c] = largest * length;
    // Of all columns: those that are no number are not among the ordered ones.
    broken = is_finite(s[c]) && is_finite(a.S[c]) ? broken : T(1);
    directions += length > T(0) ? T(1) : T(0);
  }
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e / m, column = order[e % m];
    const T length = s[column];
    a.U[e] = length > T(0) ? X[column * ld + i] / length : T(0);
    a.V[e] = V[column * ldv + i];
  }
  broken = team.max(broken);
  directions = team.sum(directions);
  T steepest = 0;  // cosine between two columns of U
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e / m, j = e % m;
    if (i >= j || !(s[i] > T(0)) || !(s[j] > T(0))) continue;
    T product = 0;
    for (int k = 0; k < m; ++k) product += X[i * ld + k] * X[j * ld + k];
    steepest = larger(steepest, absolute(product) / (s[i] * s[j]));
  }
  steepest = team.max(steepest);
  if (team.rank() != 0) return;
  int word = kSound;
  if (broken != T(0)) {
    word = kNotFinite;
  } else {
    if (directions < T(m)) word |= kRankDeficient;
    if (sweeps < 0) word |= kNotConverged;
    if (!(steepest <= orthogonality<T>())) word |= kNotOrthogonal;
  }
  *a.sweeps = sweeps < 0 ? kMaxSweeps : sweeps;
  *a.status = word;
}

}  // namespace lip_fast
