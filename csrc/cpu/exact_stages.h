// The stages of an exact step, for one instruction set: see cpu/exact_step.h.
#pragma once

#include "cpu/dots.h"
#include "cpu/small_algebra.h"

namespace lip_fast::cpu {

template <int W>
class ExactStages {
 public:
  ExactStages(ExactStep& step, const ExactRoom& room, const Crew&)
      : a(step), room(room), d(room.d), dp(room.dp), t(room.t), n(room.n), np(room.np) {}

  LIP_FAST_INLINE void run() {
    by_small_side();
    directions();
    if (a.status != kSound) return;
    tail();
    refit_tail();
    if (a.applied) add();
  }

 private:
  static constexpr int D = W / 2;  // lanes of double

  // Relative size of singular values whose vectors a double Gram matrix resolves: to 1e-16 over its square. Shorter ones
  // are no directions, and have zero columns on the large side.
  static constexpr double kResolved = 1e-6;

  LIP_FAST_INLINE void by_small_side() {
    for (int i = 0; i < d; ++i) {
      double* const row = room.X + i * np;
      const float* const from = a.M + i * (room.wide ? a.m_stride : 1);
      if (room.wide) {
#pragma omp simd
        for (std::int64_t x = 0; x < n; ++x) row[x] = from[x];
      } else {
        for (std::int64_t x = 0; x < n; ++x) row[x] = from[x * a.m_stride];
      }
      std::fill(row + n, row + np, 0.0);
    }
  }

  /// P, of X X^T by falling eigenvalues, and their roots S.
  LIP_FAST_INLINE void directions() {
    double* const H = room.H;
    constexpr int kBlock = W == 16 ? 4 : 2;
    double unused[kBlock];
    for (int i = 0; i < d; i += kBlock) {
      for (int j = i; j < d; j += kBlock) {
        double* const to = H + i * dp + j;
        if (j + kBlock <= d) {
          dots<D, kBlock, kBlock>(np, room.X + i * np, np, room.X + j * np, np, to, dp, unused);
          continue;
        }
        for (int r = 0; r < std::min(kBlock, d - i); ++r) {
          for (int c = 0; c < d - j; ++c) {
            dots<D, 1, 1>(np, room.X + (i + r) * np, np, room.X + (j + c) * np, np, to + r * dp + c, dp, unused);
          }
        }
      }
    }
    for (int i = 0; i < d; ++i) std::fill(H + i * dp + d, H + (i + 1) * dp, 0.0);
    double lambda[kMostSmall];
    a.status = decompose_symmetric<W>(H, room.P, lambda, d, d, dp, room.work, room.scratch);
    if (a.status != kSound) return;
    for (int c = 0; c < d; ++c) room.S[c] = static_cast<float>(std::sqrt(lambda[c]));
  }

  /// The vectors of the tail on both sides, and its lengths, which are more accurate than roots of eigenvalues.
  LIP_FAST_INLINE void tail() {
    multiply<D, double>(t, np, d, {room.P + a.k, 1, dp}, room.X, np, room.large, np, false);
    for (int c = 0; c < t; ++c) {
      const double* const y = room.large + c * np;
      double product, square;
      dots<D, 1, 1>(np, y, np, y, np, &product, 1, &square);
      const double length = std::sqrt(square);
      room.S[a.k + c] = static_cast<float>(length);
      const double inverse = length > kResolved * room.S[0] ? 1 / length : 0.0;
      float *const large = room.of_large + c * np, *const small = room.of_small + c * dp;
#pragma omp simd
      for (std::int64_t x = 0; x < np; ++x) large[x] = static_cast<float>(y[x] * inverse);
      for (int i = 0; i < dp; ++i) small[i] = i < d ? static_cast<float>(room.P[i * dp + a.k + c]) : 0.0f;
    }
  }

  LIP_FAST_INLINE void refit_tail() {
    const float *const A = room.wide ? room.of_small : room.of_large, *const B = room.wide ? room.of_large : room.of_small;
    const std::int64_t a_apart = room.wide ? dp : np, b_apart = room.wide ? np : dp;
    double *const numerator = room.sums, *const denominator = numerator + a.r, *const energy = denominator + a.r;
    std::fill(numerator, energy + 1, 0.0);
    for (int c = 0; c < a.r; ++c) {
      double sum = 0;
      for (std::int64_t i = 0; a.bias != nullptr && i < a.l; ++i) sum += static_cast<double>(a.bias[i]) * A[c * a_apart + i];
      room.offset[c] = sum;
    }
    for (std::int64_t row = 0; row < a.batch.n; row += kRows) {
      if (row + kRows <= a.batch.n) {
        sums_of_rows<kRows>(row, A, a_apart, B, b_apart);
      } else {
        for (std::int64_t i = row; i < a.batch.n; ++i) sums_of_rows<1>(i, A, a_apart, B, b_apart);
      }
    }
    const SerialTeam team;
    const bool ok = true;
    refit(team, Refit<float>{room.S, numerator, denominator, energy, &ok, d, a.k, a.r, a.tolerance, a.clip, room.s, &a.applied,
                             &a.clipped});
    for (int c = 0; c < t; ++c) room.delta[c] = (c < a.r ? room.s[c] : 0.0f) - room.S[a.k + c];
  }

  // Rows of the batch at a time, with as many directions as the registers hold.
  static constexpr int kRows = W == 16 ? 4 : 2, kColumns = W == 16 ? 5 : 3;

  /// What R rows of the batch add to the sums.
  template <int R>
  LIP_FAST_INLINE void sums_of_rows(std::int64_t row, const float* A, std::int64_t a_apart, const float* B, std::int64_t b_apart) {
    const Batch& batch = a.batch;
    const float* const X = batch.X + row * batch.x_stride;
    float products[R * kMostSmall], squares[R];
    // The squares of a row come with its first products, also where there are none.
    for (int c = 0; c == 0 || c < a.r; c += kColumns) {
      products_of_rows<R, kColumns>(std::min(kColumns, a.r - c), X, B + c * b_apart, b_apart, products + c, squares);
    }
    for (int i = 0; i < R; ++i) {
      const std::int64_t label = batch.y[row + i];
      if (label < 0 || label >= a.l) {
        a.masked += label != batch.ignored;
        continue;
      }
      room.sums[2 * a.r] += squares[i];
      for (int c = 0; c < a.r; ++c) {
        const double p = products[i * kMostSmall + c];
        room.sums[c] += p * (A[c * a_apart + label] - room.offset[c]);
        room.sums[a.r + c] += p * p;
      }
    }
  }

  /// As dots(), of 0 to N columns.
  template <int R, int N>
  LIP_FAST_INLINE void products_of_rows(int columns, const float* X, const float* B, std::int64_t b_apart, float* to, float* squares) {
    if constexpr (N == 0) {
      float unused[R * kMostSmall];
      dots<W, R, 1>(a.q, X, a.batch.x_stride, X, 0, unused, kMostSmall, squares);
    } else if (columns == N) {
      dots<W, R, N>(a.q, X, a.batch.x_stride, B, b_apart, to, kMostSmall, squares);
    } else {
      products_of_rows<R, N - 1>(columns, X, B, b_apart, to, squares);
    }
  }

  /// M += A diag(delta) B^T.
  LIP_FAST_INLINE void add() {
    const int used = a.drop ? t : a.r;
    for (std::int64_t i = 0; i < a.l; ++i) {
      float* const row = a.M + i * a.m_stride;
      for (int c = 0; c < used; ++c) {
        const float by = (room.wide ? room.of_small[c * dp + i] : room.of_large[c * np + i]) * room.delta[c];
        const float* const b = room.wide ? room.of_large + c * np : room.of_small + c * dp;
#pragma omp simd
        for (std::int64_t j = 0; j < a.q; ++j) row[j] += by * b[j];
      }
    }
  }

  ExactStep& a;
  const ExactRoom& room;
  const int d, dp, t;
  const std::int64_t n, np;
};

}  // namespace lip_fast::cpu
