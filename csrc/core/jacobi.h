// Singular value decomposition of a small square matrix by one-sided Jacobi rotations.
//
// Columns are rotated pairwise until all are orthogonal: X J = U diag(s). It needs no bidiagonal form, computes small
// singular values to high relative accuracy (Demmel and Veselic, SIAM J. Matrix Anal. Appl. 13, 1992), and starts
// warm: columns that are nearly orthogonal already need two or three sweeps.
#pragma once

#include "core/config.h"
#include "core/real.h"

namespace lip_fast {

/// More sweeps than a matrix of 128 columns needs: from a cold start 5 to 10 are usual, 25 where the values spread over
/// eight decades.
constexpr int kMaxSweeps = 40;

/// Squared length, beside entries of up to 1, of a column that is none: below eps^2 of the largest, twice over.
template <class T>
LIP_FAST_FN T no_length() {
  return Real<T>::epsilon * Real<T>::epsilon * Real<T>::epsilon * Real<T>::epsilon;
}

/// Players of a round-robin tournament, ``players`` even: in each of players - 1 rounds, every one meets another.
LIP_FAST_FN void pairing(int players, int round, int pair, int* p, int* q) {
  const int circle = players - 1;
  int a = pair == 0 ? circle : (round + pair) % circle;
  int b = pair == 0 ? round : (round + circle - pair) % circle;
  *p = a < b ? a : b;
  *q = a < b ? b : a;
}

/// Orthogonalises the columns of X (n, m), whose largest entry is 1, by rotations, which are applied to the columns of
/// V (v_rows, m) too.
///
/// Column j of X is at ``j * ld`` and of V at ``j * ldv``; v_rows may be 0.
/// Returns the number of sweeps, or -1 where kMaxSweeps did not do.
template <class Team, class T>
LIP_FAST_FN int rotate_columns(Team& team, T* X, int n, int ld, T* V, int v_rows, int ldv, int m) {
  // The rounding of an inner product of n terms: columns closer to orthogonal cannot be told from those that are.
  const T tolerance = square_root(T(n)) * Real<T>::epsilon;
  const int players = m + (m & 1), pairs = players / 2;
  const int lanes = Team::kLanes, lane = team.rank() % lanes;
  const int group = team.rank() / lanes, groups = team.size() / lanes;
  for (int sweep = 1; sweep <= kMaxSweeps; ++sweep) {
    T steepest = 0;  // largest |cosine| between two columns
    T widest = 0;    // largest |tangent| of a rotation
    for (int round = 0; round + 1 < players; ++round) {
      team.sync();
      for (int pair = group; pair < pairs; pair += groups) {
        int p, q;
        pairing(players, round, pair, &p, &q);
        if (q >= m) continue;  // an odd one sits out
        T* x = X + p * ld;
        T* y = X + q * ld;
        T xx = 0, yy = 0, xy = 0;
#pragma omp simd reduction(+ : xx, yy, xy)
        for (int i = lane; i < n; i += lanes) {
          xx += x[i] * x[i];
          yy += y[i] * y[i];
          xy += x[i] * y[i];
        }
        xx = team.lane_sum(xx);
        yy = team.lane_sum(yy);
        xy = team.lane_sum(xy);
        // Too short to have a direction: what cancellation leaves of a column would be turned for ever.
        if (xx < no_length<T>() || yy < no_length<T>()) continue;
        // One root at a time: the product of two squares can underflow.
        const T lengths = square_root(xx) * square_root(yy);
        const T cosine = absolute(xy) / lengths;
        if (!(cosine > tolerance)) continue;  // not so where nothing is a number
        steepest = larger(steepest, cosine);
        // The smaller of the two rotations that make x and y orthogonal.
        const T zeta = (yy - xx) / (T(2) * xy);
        const T size = absolute(zeta);
        // The square would overflow long before the 1 beside it stops to matter.
        const T root = size > T(1) / Real<T>::epsilon ? size : square_root(T(1) + zeta * zeta);
        const T t = (zeta < T(0) ? T(-1) : T(1)) / (size + root);
        const T c = T(1) / square_root(T(1) + t * t), s = c * t;
        // c = 1 - s r: small rotations add to the columns what would be lost in a c rounded to 1 (Rutishauser, 1966).
        const T r = s / (T(1) + c);
        widest = larger(widest, absolute(t));
#pragma omp simd
        for (int i = lane; i < n; i += lanes) {
          const T a = x[i], b = y[i];
          x[i] = a - s * (b + r * a);
          y[i] = b + s * (a - r * b);
        }
        T* v = V + p * ldv;
        T* w = V + q * ldv;
#pragma omp simd
        for (int i = lane; i < v_rows; i += lanes) {
          const T a = v[i], b = w[i];
          v[i] = a - s * (b + r * a);
          w[i] = b + s * (a - r * b);
        }
      }
    }
    steepest = team.max(steepest);
    widest = team.max(widest);
    team.sync();
    if (steepest == T(0)) return sweep;
    // A rotation by t undoes an earlier one of its columns by t times the cosine it meets. When that is below the
    // rounding for all of them, the sweep that would find nothing left to do can be spared. Not after a large cosine:
    // of a short column that lay along a long one, a tiny rotation leaves mere rounding, orthogonal to nothing.
    if (steepest < T(0.01) && steepest * widest * T(m) <= tolerance) return sweep;
  }
  return -1;
}

}  // namespace lip_fast
