// Cholesky factorisation of a small Gram matrix with its columns scaled, a guard that drops columns which depend
// on those before them, and the inverse of the factor from the same elimination.
#pragma once

#include "core/config.h"
#include "core/real.h"

namespace lip_fast {

/// A column of which no more than this share of its squared length lies outside the span of those before it is
/// dropped. The Gram matrix of float32 columns is known to some multiple of epsilon; a pivot of this size still has
/// most of its digits, and a second pass of Cholesky QR restores the rest.
template <class T>
LIP_FAST_FN T dependent(int m) {
  return T(32) * T(m) * Real<T>::epsilon;
}

/// Gram matrix of X (n, m) in, its factorisation X^T X = R^T R out: see ``upper`` and ``inverse``.
///
/// Gauss-Jordan elimination of the Gram matrix scaled to a unit diagonal: below the diagonal the multipliers' inverse
/// builds up where the multipliers were, so that one barrier a column suffices and no second buffer is needed.
/// Scaling makes the result as good as the angles between the columns are, whatever their lengths.
///
/// G: (m, m), rows ``ld`` apart, both triangles. scale, pivot: (m) each, written.
/// Returns the number of independent columns, or -1 where G is not finite.
template <class Team, class T>
LIP_FAST_FN int factor(Team& team, T* G, int m, int ld, T* scale, T* pivot) {
  T broken = 0;
  for (int j = team.rank(); j < m; j += team.size()) {
    const T d = G[j * ld + j];
    if (!is_finite(d)) broken = 1;
    scale[j] = d > T(0) ? square_root(d) : T(0);
  }
  broken = team.max(broken);
  team.sync();
  if (broken != T(0)) return -1;
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e / m, j = e % m;
    const T product = scale[i] * scale[j];
    // A length whose square underflows is no length.
    G[i * ld + j] = i == j ? (scale[i] > T(0) ? T(1) : T(0)) : (product > T(0) ? G[i * ld + j] / product : T(0));
  }
  // 16 threads along a row: neighbours in rank read neighbouring entries.
  const int width = team.size() < 16 ? 1 : 16;
  const int column = team.rank() % width, row = team.rank() / width, rows = team.size() / width;
  const T guard = dependent<T>(m);
  int independent = 0;
  for (int k = 0; k < m; ++k) {
    team.sync();
    const T p = G[k * ld + k];
    if (!(p > guard)) {
      if (team.rank() == 0) pivot[k] = T(0);
      continue;
    }
    ++independent;
    if (team.rank() == 0) pivot[k] = p;
    for (int i = k + 1 + row; i < m; i += rows) {
      const T multiplier = G[i * ld + k] / p;
      for (int j = column; j < m; j += width) {
        // Column k keeps its raw entries: every later step acts on all of it alike, so its factor -1 / p can wait.
        if (j != k) G[i * ld + j] -= multiplier * G[k * ld + j];
      }
    }
  }
  team.sync();
  return independent;
}

/// R(i, j) after ``factor``; rows of dropped columns are zero.
template <class T>
LIP_FAST_FN T upper(const T* G, int ld, const T* scale, const T* pivot, int i, int j) {
  return i <= j && pivot[i] > T(0) ? G[i * ld + j] / square_root(pivot[i]) * scale[j] : T(0);
}

/// P(i, j) after ``factor``, where X P is orthonormal in the columns that were kept and zero in those dropped.
template <class T>
LIP_FAST_FN T inverse(const T* G, int ld, const T* scale, const T* pivot, int i, int j) {
  if (i > j || !(pivot[i] > T(0)) || !(pivot[j] > T(0))) return T(0);
  const T unit = i == j ? T(1) : -G[j * ld + i] / pivot[i];
  return unit / (square_root(pivot[j]) * scale[i]);
}

/// Replaces what ``factor`` left in G by P, zeros below its diagonal.
template <class Team, class T>
LIP_FAST_FN void invert(Team& team, T* G, int m, int ld, const T* scale, const T* pivot) {
  for (int e = team.rank(); e < m * m; e += team.size()) {
    const int i = e / m, j = e % m;
    // Entry (i, j) is made from (j, i), below the diagonal, which the same thread clears.
    if (i > j) continue;
    const T value = inverse(G, ld, scale, pivot, i, j);
    if (i < j) G[j * ld + i] = T(0);
    G[i * ld + j] = value;
  }
  team.sync();
}

}  // namespace lip_fast
