// The small matrices of a truncated step on one thread: a Cholesky factor in double, and the singular values and
// vectors of a factor, found in float and made exact by one step in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/multiply.h"
#include "cpu/room.h"

namespace lip_fast::cpu {

/// Of a column scaled to length 1, the squared part outside the span of those before it that is no more than rounding:
/// its entries are float, whose products a double holds, so that rounding leaves some 1e-14 of dependent columns.
constexpr double kDependent = 1e-12;

/// Squares of floats are at most 1.2e77; sums of them that are larger, or NaN, are of something that is not finite.
constexpr double kLargestSquare = 1e300;

/// What a factorisation found of the columns.
struct Independence {
  bool finite;
  double least;  // squared part outside the span of those before it, of a column that does not depend on them
};

/// The upper factor R of G = R^T R in place: G (m, m) symmetric, of which the upper triangle is read; rows ``ld`` apart,
/// a multiple of D. Rows of columns that depend on those before them are zeros: of which no more than the share
/// ``dependent`` of the square is outside of their span.
template <int D>
LIP_FAST_INLINE Independence factor(double* G, int m, int ld, double dependent = kDependent) {
  double length[kMostSmall];
  for (int i = 0; i < m; ++i) {
    const double square = G[i * ld + i];
    if (!(square >= 0 && square <= kLargestSquare)) return {false, 0};
    length[i] = std::sqrt(square);
  }
  for (int i = 0; i < m; ++i) {
    const double inverse = length[i] > 0 ? 1 / length[i] : 0;
    for (int j = 0; j < ld; ++j) G[i * ld + j] = j < i || j >= m || !(length[j] > 0) ? 0 : G[i * ld + j] * inverse / length[j];
  }
  double least = 1;
  for (int k = 0; k < m; ++k) {
    double* const row = G + k * ld;
    const double pivot = row[k];
    if (!(pivot > dependent)) {
      for (int j = k; j < m; ++j) row[j] = 0;
      continue;
    }
    least = std::min(least, pivot);
    const double inverse = 1 / std::sqrt(pivot);
    for (int j = k; j < m; ++j) row[j] *= inverse;
    for (int i = k + 1; i < m; ++i) {
      const double c = row[i];
      for (int j = i / D * D; j < m; j += D) {
        double* const x = G + i * ld + j;
        store<D>(x, load<D>(x) - c * load<D>(row + j));
      }
    }
  }
  for (int i = 0; i < m; ++i) {
    for (int j = i + 1; j < m; ++j) G[i * ld + j] *= length[j];
    G[i * ld + i] *= length[i];
    for (int j = 0; j < i; ++j) G[i * ld + j] = 0;  // the blocks above have written there
  }
  return {true, least};
}

/// P = R^-1 of an upper factor: where R has a row of zeros, P has a row and a column of them.
template <int D>
LIP_FAST_INLINE void invert(const double* R, double* P, int m, int ld) {
  for (int i = m - 1; i >= 0; --i) {
    double* const row = P + i * ld;
    for (int j = 0; j < ld; ++j) row[j] = 0;
    const double pivot = R[i * ld + i];
    if (!(pivot > 0)) continue;
    for (int k = i + 1; k < m; ++k) {
      const double c = R[i * ld + k];
      for (int j = k / D * D; j < m; j += D) store<D>(row + j, load<D>(row + j) - c * load<D>(P + k * ld + j));
    }
    const double inverse = 1 / pivot;
    for (int j = i + 1; j < m; ++j) row[j] *= inverse;
    row[i] = inverse;
  }
}

/// 1 / sqrt(x) for normal x > 0, to rounding: three steps of Newton's method.
template <int W>
LIP_FAST_INLINE Lanes<float, W> inverse_root(Lanes<float, W> x) {
  const Integers<float, W> bits = 0x5f3759df - ((Integers<float, W>)x >> 1);
  Lanes<float, W> y = (Lanes<float, W>)bits;
  const Lanes<float, W> half = 0.5f * x;
  y *= 1.5f - half * y * y;
  y *= 1.5f - half * y * y;
  y *= 1.5f - half * y * y;
  return y;
}

/// Sweeps of one-sided Jacobi before a matrix counts as one that does not converge; 5 to 7 are common.
constexpr int kMostSweeps = 24;

/// Columns whose cosine is below this count as orthogonal: what rounding leaves of sums of 64 products. Vectors of singular
/// values that are closer than a thousand times this are not told apart.
constexpr float kCosine = 5e-7f;

/// Rotates the columns of X (m, 2 N W) until no cosine of two is larger than ``enough``; returns the sweeps, or -1 where
/// ``most`` of them do not do. The rows of X are ``ld`` apart.
///
/// Lane i holds the columns i and N W + i, which a round rotates; then the columns move on as in a tournament, all but
/// the first one, and after 2 N W - 1 rounds each is where it began.
template <int W, int N>
LIP_FAST_INLINE int orthogonalise(float* X, int m, int ld, float enough, int most) {
  constexpr int H = N * W;
  using V = Lanes<float, W>;
  using I = Integers<float, W>;
  constexpr float kTiny = 1e-18f;
  I up, down, first, last;
  for (int i = 0; i < W; ++i) {
    up[i] = W + i - 1;                        // of (before, this): one lane up
    down[i] = i + 1;                          // of (this, next): one lane down
    first[i] = i == 0 ? 0 : i == 1 ? W : i - 1;  // of (top, bottom): column 0 stays, the first below comes up
    last[i] = i < W - 1 ? i + 1 : 2 * W - 1;  // of (bottom, top): the last above goes down
  }
  const V one = V{} + 1.0f;
  for (int sweep = 1; sweep <= most; ++sweep) {
    V top[N], bottom[N], product[N];
    for (int j = 0; j < N; ++j) top[j] = bottom[j] = product[j] = V{};
    for (int r = 0; r < m; ++r) {
      const float* const row = X + r * ld;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const V a = load<W>(row + j * W), b = load<W>(row + H + j * W);
        top[j] += a * a;
        bottom[j] += b * b;
        product[j] += a * b;
      }
    }
    V steepest = V{}, widest = V{};
    for (int round = 0; round < 2 * H - 1; ++round) {
      V c[N], s[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const I there = (top[j] > kTiny) & (bottom[j] > kTiny);
        const V size = product[j] < 0 ? -product[j] : product[j];
        // One factor at a time: the product of both lengths may underflow.
        const V cosine = there ? (size * inverse_root<W>(there ? top[j] : one)) * inverse_root<W>(there ? bottom[j] : one) : V{};
        steepest = cosine > steepest ? cosine : steepest;
        const V half = 0.5f * (bottom[j] - top[j]);
        const V square = half * half + product[j] * product[j];
        const I turn = (cosine > enough) & (square > kTiny * kTiny);
        const V root = square * inverse_root<W>(turn ? square : one);
        const V magnitude = half < 0 ? -half : half;
        V tangent = product[j] / (turn ? magnitude + root : one);
        tangent = half < 0 ? -tangent : tangent;
        tangent = turn ? tangent : V{};
        const V wide = tangent < 0 ? -tangent : tangent;
        widest = wide > widest ? wide : widest;
        const V cos = inverse_root<W>(1.0f + tangent * tangent);
        s[j] = cos * tangent;
        c[j] = s[j] / (1.0f + cos);  // the tangent of half the angle: rotations lose less than with the cosine
        const V moved = tangent * product[j];
        top[j] -= moved;
        bottom[j] += moved;
        product[j] = V{};
      }
      for (int r = 0; r < m; ++r) {
        float* const row = X + r * ld;
        V a[N], b[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
          const V x = load<W>(row + j * W), y = load<W>(row + H + j * W);
          a[j] = x - s[j] * (y + c[j] * x);
          b[j] = y + s[j] * (x - c[j] * y);
        }
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
          const V x = j == 0 ? pick<float, W>(a[0], b[0], first) : pick<float, W>(a[j - 1], a[j], up);
          const V y = j == N - 1 ? pick<float, W>(b[j], a[j], last) : pick<float, W>(b[j], b[j + 1], down);
          store<W>(row + j * W, x);
          store<W>(row + H + j * W, y);
          product[j] += x * y;
        }
      }
      V a[N], b[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        a[j] = top[j];
        b[j] = bottom[j];
      }
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        top[j] = j == 0 ? pick<float, W>(a[0], b[0], first) : pick<float, W>(a[j - 1], a[j], up);
        bottom[j] = j == N - 1 ? pick<float, W>(b[j], a[j], last) : pick<float, W>(b[j], b[j + 1], down);
      }
    }
    float cosine = 0, tangent = 0;
    for (int i = 0; i < W; ++i) {
      cosine = std::max(cosine, steepest[i]);
      tangent = std::max(tangent, widest[i]);
    }
    // Also where what this sweep left is sure to be as small: it falls with its square.
    if (cosine <= enough || (cosine < 0.01f && cosine * tangent * 2 * H <= enough)) return sweep;
  }
  return -1;
}

/// Sweeps over X (m, m), whose rows are 2 N W apart, as orthogonalise(); where most of the work is among the short
/// columns, of the tail and fresh ones, those are first orthogonalised roughly, by themselves.
template <int W, int N>
LIP_FAST_INLINE int orthogonalise_graded(float* X, int m) {
  constexpr float kRough = 1e-3f;
  constexpr int ld = 2 * N * W, half = ld / 2;
  orthogonalise<W, N / 2>(X + half * ld + half, m - half, ld, kRough, kMostSweeps);
  return orthogonalise<W, N>(X, m, ld, kCosine, kMostSweeps);
}

/// The first ``t`` columns of P (m, m): eigenvectors of H in the order of falling eigenvalues, where H with rows and
/// columns in ``order`` is R^T R; returns whether they were found. Rows of R and P are ``ld`` apart.
/// scratch: of room_of_eigenvectors(m).
template <int W>
LIP_FAST_INLINE bool eigenvectors(const double* R, double* P, const int* order, int m, int t, int ld, float* scratch) {
  // Vectors of pairs of 128, 64 and 32 columns, and shorter ones of 16.
  constexpr int kAll = 128 / (2 * W), kHalf = 64 / (2 * W), kQuarter = 32 / (2 * W), kShort = W < 8 ? W : 8;
  const int apart = m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128;
  float* const X = scratch;
  const float scale = R[0] > 0 ? static_cast<float>(1 / R[0]) : 0.0f;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < apart; ++j) X[i * apart + j] = j <= i ? static_cast<float>(R[j * ld + i]) * scale : 0.0f;
  }
  const int sweeps = apart == 16   ? orthogonalise<kShort, 16 / (2 * kShort)>(X, m, apart, kCosine, kMostSweeps)
                     : apart == 32 ? orthogonalise<W, kQuarter>(X, m, apart, kCosine, kMostSweeps)
                     : apart == 64 ? orthogonalise_graded<W, kHalf>(X, m)
                                   : orthogonalise_graded<W, kAll>(X, m);
  if (sweeps < 0) return false;
  float s[kMostSmall];
  int by_size[kMostSmall];
  for (int j = 0; j < m; ++j) {
    float square = 0;
    for (int i = 0; i < m; ++i) square += X[i * apart + j] * X[i * apart + j];
    s[j] = std::sqrt(square);
    by_size[j] = j;
  }
  std::sort(by_size, by_size + m, [&](int i, int j) { return s[i] > s[j]; });
  for (int i = 0; i < m; ++i) {
    for (int c = 0; c < t; ++c) {
      const int j = by_size[c];
      P[order[i] * ld + c] = s[j] > 0 ? X[i * apart + j] / s[j] : 0.0;
    }
  }
  return true;
}

/// Improves eigenvectors P (m, t) of the symmetric H (m, m), by steps of Ogita and Aishima (2018) in double; returns
/// the largest |b_i . b_j| that is left of b_i = Z p_i / s_i, H = Z^T Z, to first order, or more than 1 where they fail.
///
/// lambda: (t), written. All matrices have rows ``ld`` apart, a multiple of D, and zeros beyond their columns.
/// work: (3, m, ld).
template <int D>
LIP_FAST_INLINE double refine(const double* H, double* P, double* lambda, int m, int t, int ld, double* work) {
  double* const HP = work;
  double* const E = work + m * ld;
  double* const L = E + m * ld;
  double worst = 0;
  for (int step = 0; step < 4; ++step) {
    multiply<D, double>(m, ld, m, {H, ld, 1}, P, ld, HP, ld, false);
    multiply<D, double>(t, ld, m, {P, 1, ld}, HP, ld, L, ld, false);  // P^T H P
    multiply<D, double>(t, ld, m, {P, 1, ld}, P, ld, E, ld, false);   // P^T P
    double root[kMostSmall], inverse[kMostSmall];
    for (int i = 0; i < t; ++i) {
      lambda[i] = E[i * ld + i] > 0 ? std::max(L[i * ld + i] / E[i * ld + i], 0.0) : 0;
      root[i] = std::sqrt(lambda[i]);
      inverse[i] = root[i] > 0 ? 1 / root[i] : 0;
    }
    worst = 0;
    for (int i = 0; i < t; ++i) {
      double* const correction = HP + i * ld;
      double row_worst = 0, sum = 0;
#pragma omp simd reduction(max : row_worst) reduction(+ : sum)
      for (int j = 0; j < t; ++j) {
        const double apart = lambda[j] - lambda[i], off = L[i * ld + j] - lambda[j] * E[i * ld + j];
        // Of close eigenvalues any two orthogonal vectors will do.
        const bool resolved = std::fabs(off) < 1e-3 * std::fabs(apart);
        const double value = resolved ? off / (resolved ? apart : 1.0) : -0.5 * E[i * ld + j];
        correction[j] = value;
        const double error = j == i ? 0.0 : std::fabs(value) * root[i] * inverse[j];
        row_worst = error > row_worst ? error : row_worst;
        sum += error;
      }
      correction[i] = -0.5 * (E[i * ld + i] - 1);
      for (int j = t; j < ld; ++j) correction[j] = 0;
      worst = row_worst > worst ? row_worst : worst;
      if (!(sum <= kLargestSquare)) return 2;  // no comparison holds with what is no number
    }
    std::copy(P, P + m * ld, E);
    multiply<D, double>(m, ld, t, {E, ld, 1}, HP, ld, P, ld, true);
    // The error is squared by each step.
    if (worst <= 1e-3) break;
  }
  return worst * worst;
}

/// Eigenvectors P (m, t) of a symmetric H (m, m) of which the upper triangle is read, and its t largest eigenvalues, the
/// largest first; returns bits of core/status.h. All matrices have rows ``ld`` apart, a multiple of D, and zeros beyond
/// their columns.
///
/// work: (4, m, ld). scratch: of room_of_eigenvectors(m).
template <int W>
LIP_FAST_INLINE int decompose_symmetric(double* H, double* P, double* lambda, int m, int t, int ld, double* work, float* scratch) {
  constexpr int D = W / 2;
  double* const R = work;
  // By falling lengths: the factor is then graded, and small eigenvalues are as accurate as large ones.
  int order[kMostSmall];
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < i; ++j) H[i * ld + j] = H[j * ld + i];
    if (!(H[i * ld + i] >= 0 && H[i * ld + i] <= kLargestSquare)) return kNotFinite;
    order[i] = i;
  }
  std::sort(order, order + m, [&](int i, int j) { return H[i * ld + i] > H[j * ld + j]; });
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < ld; ++j) R[i * ld + j] = j < m ? H[order[i] * ld + order[j]] : 0.0;
  }
  if (!factor<D>(R, m, ld).finite) return kNotFinite;
  std::fill(P, P + m * ld, 0.0);
  if (!eigenvectors<W>(R, P, order, m, t, ld, scratch)) return kNotConverged;
  // Of a basis whose columns have cosines up to that a step is not to be used.
  return refine<D>(H, P, lambda, m, t, ld, work + m * ld) <= orthogonality<double>() ? kSound : kNotOrthogonal;
}

/// The sum G (columns, columns) of the parts of a Gram matrix that lie one after another, of which the upper triangle is
/// used.
template <int D>
LIP_FAST_INLINE void add_up(const Parts& parts, int columns, const double* grams, double* G) {
  std::fill(G, G + columns * columns, 0.0);
  for (std::int64_t part = 0; part < parts.count(); ++part) {
    const double* const from = grams + part * columns * columns;
    for (int i = 0; i < columns; ++i) {
      for (int c = i / D * D; c < columns; ++c) G[i * columns + c] += from[i * columns + c];
    }
  }
}

/// gram() of floats X (n, m), rows ``ldx`` apart, in double. room: (n, m).
template <int D>
LIP_FAST_INLINE void gram_in_double(std::int64_t n, int m, const float* X, std::int64_t ldx, double* room, double* G, bool add) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < m; ++c) room[i * m + c] = X[i * ldx + c];
  }
  gram<D, double>(n, m, room, m, G, add);
}

}  // namespace lip_fast::cpu
