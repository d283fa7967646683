// The stages of a truncated step, for one instruction set: see cpu/truncated_step.h.
#pragma once

#include "cpu/batch_sums.h"
#include "cpu/small_algebra.h"

namespace lip_fast::cpu {

template <int W>
class TruncatedStages {
 public:
  TruncatedStages(TruncatedStep& step, const TruncatedRoom& room, const Crew& crew)
      : a(step), room(room), crew(crew), m(room.m), columns(step.t + step.fresh), tile(room.tile + room.tile_size * crew.rank()) {}

  LIP_FAST_INLINE void run() {
    start();
    sketch();
    orthonormalise();
    project();
    solve();
    vectors();
    if (a.A != nullptr) {
      class_side();
    } else {
      labels();
      refit_tail();
      if (a.applied) rebuild();
    }
  }

 private:
  static constexpr int D = W / 2;  // lanes of double

  /// V: the basis, and what fresh signs have beside it. M times a raw sign vector is mostly in the span of M times the
  /// basis, and what is not would be lost in rounding.
  LIP_FAST_INLINE void start() {
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.q));
    crew.each(room.slabs.count(), [&](std::int64_t slab) {
      const std::int64_t j = room.slabs.begin(slab);
      std::uint32_t words[kPanel];
#pragma omp simd
      for (int i = 0; i < kPanel; ++i) {
        words[i] = sign_bits(static_cast<std::uint32_t>(j + i), static_cast<std::uint32_t>(a.step), 0, a.seed).word[0];
      }
      for (int i = 0; i < room.slabs.size(slab); ++i) {
        float* const signs = room.F + (j + i) * 16;
#pragma omp simd
        for (int c = 0; c < 16; ++c) signs[c] = c < a.fresh ? scale * sign(words[i], c) : 0.0f;
        std::copy(a.basis + (j + i) * a.t, a.basis + (j + i + 1) * a.t, room.V + (j + i) * m);
        std::fill(room.V + (j + i) * m + a.t, room.V + (j + i + 1) * m, 0.0f);
      }
    });
    crew.each((a.t + 11) / 12, [&](std::int64_t i) {
      const std::int64_t row = 12 * i, rows = std::min<std::int64_t>(12, a.t - row);
      multiply<W, float>(rows, 16, a.q, {a.basis + row, 1, a.t}, room.F, 16, room.C + row * 16, 16, false);
      for (std::int64_t e = 0; e < rows * 16; ++e) room.C[row * 16 + e] = -room.C[row * 16 + e];
    });
    crew.each(room.slabs.count(), [&](std::int64_t slab) {
      const std::int64_t first = room.slabs.begin(slab), rows = room.slabs.size(slab);
      multiply<W, float>(rows, 16, a.t, {room.V + first * m, m, 1}, room.C, 16, room.F + first * 16, 16, true);
      for (std::int64_t j = first; j < first + rows; ++j) {
        std::copy(room.F + j * 16, room.F + j * 16 + a.fresh, room.V + j * m + a.t);
      }
    });
  }

  /// Y = M V.
  LIP_FAST_INLINE void sketch() {
    each_tile([&](std::int64_t row, std::int64_t rows) {
      for (std::int64_t j = 0; j < a.q; j += kDepth) {
        multiply<W, float>(rows, m, std::min<std::int64_t>(kDepth, a.q - j), {a.M + row * a.m_stride + j, a.m_stride, 1},
                           room.V + j * m, m, room.Y + row * m, m, j > 0, after(row, rows, j, kDepth, 0, a.q, rows));
      }
    });
  }

  /// Q = Y R^-1 in the place of Y, again where the columns were far from orthogonal.
  LIP_FAST_INLINE void orthonormalise() {
    // Squared: Q is off by rounding over the least part that a column has of its own, 6e-8 / 0.03.
    constexpr double kEnough = 1e-3;
    for (int pass = 0; pass < 3; ++pass) {
      crew.each(room.of_Y.count(), [&](std::int64_t part) {
        double* const in_double = reinterpret_cast<double*>(tile);
        double* const G = room.grams + part * m * m;
        for (std::int64_t done = 0; done < room.of_Y.size(part); done += kFewRows) {
          const std::int64_t rows = std::min<std::int64_t>(kFewRows, room.of_Y.size(part) - done);
          const float* const from = room.Y + (room.of_Y.begin(part) + done) * m;
          gram_in_double<D>(rows, m, from, m, in_double, G, done > 0);
        }
      });
      crew.one([&] {
        double *const G = room.small, *const P = G + m * m;
        add_up<D>(room.of_Y, m, room.grams, G);
        const Independence found = factor<D>(G, columns, m);
        invert<D>(G, P, columns, m);
        a.status = found.finite ? kSound : kNotFinite;
        *room.least = found.least;
        for (int e = 0; e < m * m; ++e) room.W_A[e] = e < columns * m ? static_cast<float>(P[e]) : 0.0f;
      });
      each_tile([&](std::int64_t row, std::int64_t rows) {
        float* const Y = room.Y + row * m;
        multiply<W, float>(rows, m, columns, {Y, m, 1}, room.W_A, m, tile, m, false);
        std::copy(tile, tile + rows * m, Y);
      });
      if (*room.least >= kEnough) break;
    }
  }

  /// Z = M^T Q. A thread takes all of its columns at once, to read the rows of M in turn.
  LIP_FAST_INLINE void project() {
    const std::int64_t first = room.slabs.begin(crew.begin(room.slabs.count()));
    const std::int64_t last = std::min(a.q, room.slabs.begin(crew.end(room.slabs.count())));
    for (std::int64_t row = 0; row < a.l; row += kTile) {
      const std::int64_t rows = std::min<std::int64_t>(kTile, a.l - row);
      for (std::int64_t j = first; j < last; j += kSlice) {
        // Copied: rows that are a power of two apart would drive each other out of the first cache.
        constexpr int kApart = kSlice + 16;
        const std::int64_t slice = std::min<std::int64_t>(kSlice, last - j);
        for (std::int64_t i = 0; i < rows; ++i) {
          const float* const from = a.M + (row + i) * a.m_stride + j;
          std::copy(from, from + slice, tile + i * kApart);
        }
        multiply<W, float>(slice, m, rows, {tile, 1, kApart}, room.Y + row * m, m, room.Z + j * m, m, row > 0,
                           after(row, rows, j, kSlice, first, last, slice));
      }
    }
    crew.sync();
  }

  /// The largest square of a length that float sums of squares resolve, and one over the smallest.
  static constexpr double kLargestResolved = 1e30;

  /// S and the small matrices of A = Q W_A and B = Z W_B.
  LIP_FAST_INLINE void solve() {
    gram_parts(room.Z);
    crew.one([&] {
      double *const H = room.small, *const P = H + m * m, *const work = P + m * m;
      add_up<D>(room.of_Z, m, room.grams, H);
      // Squares in float are out of their range for very large and very small weights, which a library takes.
      double largest = 0;
      bool resolved = a.status == kSound;
      for (int i = 0; i < columns; ++i) {
        const double square = H[i * m + i];
        resolved = resolved && square >= 0 && square <= kLargestResolved;
        largest = std::max(largest, square);
      }
      if (a.status == kSound && !(resolved && largest >= 1 / kLargestResolved)) a.status = kNotConverged;
      double lambda[kMostSmall];
      if (a.status == kSound) a.status = decompose_symmetric<W>(H, P, lambda, columns, a.t, m, work, tile);
      for (int c = 0; c < a.t; ++c) {
        a.S[c] = a.status == kSound ? static_cast<float>(std::sqrt(lambda[c])) : 0.0f;
        if (a.status == kSound && !(a.S[c] > 0)) a.status = kRankDeficient;
      }
      for (int i = 0; i < m; ++i) {
        for (int c = 0; c < m; ++c) {
          const bool used = a.status == kSound && i < columns && c < a.t;
          room.W_A[i * m + c] = used ? static_cast<float>(P[i * m + c]) : 0.0f;
          room.W_B[i * m + c] = used ? static_cast<float>(P[i * m + c] / a.S[c]) : 0.0f;
        }
      }
    });
  }

  /// B = Z W_B, padded in the place of V, and in panels for the rebuild; again where it is not orthonormal enough.
  LIP_FAST_INLINE void vectors() {
    float* const padded = room.V;
    for (int pass = 0; pass < 2; ++pass) {
      crew.each(room.slabs.count(), [&](std::int64_t slab) {
        const std::int64_t j = room.slabs.begin(slab), rows = room.slabs.size(slab);
        multiply<W, float>(rows, m, columns, {room.Z + j * m, m, 1}, room.W_B, m, padded + j * m, m, false);
        float* const panel = room.panels + j * a.t;
        transpose_all<W>(a.t, rows, padded + j * m, m, panel, kPanel);
        for (int c = 0; c < a.t; ++c) std::fill(panel + c * kPanel + rows, panel + (c + 1) * kPanel, 0.0f);
        for (std::int64_t i = 0; i < rows; ++i) {
          const float* const from = padded + (j + i) * m;
          std::copy(from, from + a.t, a.B + (j + i) * a.t);
        }
      });
      gram_parts(padded);
      crew.one([&] { *room.again = a.status == kSound && !is_orthonormal(pass == 0); });
      if (!*room.again) break;
    }
  }

  /// Whether B is; where it is nearly so, W_B and S are made better if they may be.
  ///
  /// A short direction that a step has made out of longer ones is their difference: Z^T Z in float, which its square was
  /// taken from, knows it less well than B^T B does.
  LIP_FAST_INLINE bool is_orthonormal(bool may_correct) {
    constexpr double kGood = 1e-5, kNear = 0.1;
    double *const E = room.small, *const N = E + m * m, *const W_B = N + m * m, *const better = W_B + m * m;
    add_up<D>(room.of_Z, m, room.grams, E);
    double deviation = 0;
    for (int i = 0; i < a.t; ++i) {
      for (int j = i; j < a.t; ++j) {
        E[i * m + j] -= i == j ? 1.0 : 0.0;
        const double off = std::fabs(E[i * m + j]);
        // Not so where it is no number.
        if (!(off <= kLargestSquare)) a.status = kNotFinite;
        deviation = std::max(deviation, off);
      }
    }
    if (deviation <= kGood || a.status != kSound) return true;
    if (!may_correct || deviation > kNear) {
      if (deviation > orthogonality<float>()) a.status = kNotOrthogonal;
      return true;
    }
    // W_B (I + E)^(-1/2), to the square of E.
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) {
        const bool used = i < a.t && j < a.t;
        if (used && j < i) E[i * m + j] = E[j * m + i];
        if (!used) E[i * m + j] = 0;
        W_B[i * m + j] = room.W_B[i * m + j];
      }
    }
    multiply<D, double>(m, m, m, {E, m, 1}, E, m, N, m, false);
    for (int e = 0; e < m * m; ++e) N[e] = 0.375 * N[e] - 0.5 * E[e] + (e / m == e % m ? 1.0 : 0.0);
    multiply<D, double>(m, m, m, {W_B, m, 1}, N, m, better, m, false);
    for (int e = 0; e < m * m; ++e) room.W_B[e] = static_cast<float>(better[e]);
    for (int c = 0; c < a.t; ++c) a.S[c] *= static_cast<float>(std::sqrt(1.0 + E[c * m + c]));
    return false;
  }

  /// A = Q W_A.
  LIP_FAST_INLINE void class_side() {
    each_tile([&](std::int64_t row, std::int64_t rows) {
      multiply<W, float>(rows, m, columns, {room.Y + row * m, m, 1}, room.W_A, m, tile, m, false);
      for (std::int64_t i = 0; i < rows; ++i) std::copy(tile + i * m, tile + i * m + a.t, a.A + (row + i) * a.t);
    });
  }

  /// Parts of the sums of the refit.
  LIP_FAST_INLINE void labels() {
    const int r = a.t - a.k, from = a.k / 16 * 16, width = m - from, at = a.k - from;
    crew.each(room.of_batch.count(), [&](std::int64_t part) {
      const std::int64_t first = room.of_batch.begin(part), last = first + room.of_batch.size(part);
      float* const of_A = tile + room_of_sums(width);
      batch_sums<W>(a.batch, first, last, a.l, a.q, room.V + from, m, width, at, r, tile, sums_of(part), [&](std::int64_t label) {
        multiply<W, float>(1, width, columns, {room.Y + label * m, m, 1}, room.W_A + from, m, of_A, m, false);
        return of_A + at;
      });
    });
  }

  /// The values of the tail, and the small matrix that the rebuild takes: W_M = W_A diag(s), or what is added of it.
  LIP_FAST_INLINE void refit_tail() {
    if (a.bias != nullptr) {
      // bias^T Q, of each part of the rows.
      crew.each(room.of_Y.count(), [&](std::int64_t part) {
        double* const sum = room.grams + part * m * m;
        std::fill(sum, sum + m, 0.0);
        for (std::int64_t i = 0; i < room.of_Y.size(part); ++i) {
          const std::int64_t row = room.of_Y.begin(part) + i;
          const double bias = a.bias[row];
          for (int c = 0; c < m; ++c) sum[c] += bias * room.Y[row * m + c];
        }
      });
    }
    crew.one([&] {
      const int r = a.t - a.k;
      double total[count_of_sums(kMostSmall)] = {};
      for (std::int64_t part = 0; part < room.of_batch.count(); ++part) {
        for (int e = 0; e < count_of_sums(r); ++e) total[e] += sums_of(part)[e];
      }
      if (a.bias != nullptr) {
        double along[kMostSmall] = {};
        for (std::int64_t part = 0; part < room.of_Y.count(); ++part) {
          for (int c = 0; c < m; ++c) along[c] += room.grams[part * m * m + c];
        }
        for (int c = 0; c < r; ++c) {
          double of_bias = 0;
          for (int i = 0; i < columns; ++i) of_bias += along[i] * room.W_A[i * m + a.k + c];
          total[c] -= total[2 * r + c] * of_bias;
        }
      }
      float s[kMostSmall] = {};
      const bool ok = a.status == kSound;
      a.masked = static_cast<std::int64_t>(total[3 * r + 1]);
      const SerialTeam team;
      refit(team, Refit<float>{a.S, total, total + r, total + 3 * r, &ok, a.t, a.k, r, a.tolerance, a.clip, s, &a.applied,
                               &a.clipped});
      for (int i = 0; i < m; ++i) {
        for (int c = 0; c < m; ++c) {
          float value = c < a.k ? a.S[c] : c < a.t ? s[c - a.k] : 0.0f;
          if (!a.drop) value = c >= a.k && c < a.t ? value - a.S[c] : 0.0f;
          room.W_M[i * m + c] = c < a.t ? room.W_A[i * m + c] * value : 0.0f;
        }
      }
    });
  }

  /// M = A diag(s) B^T, or M += A diag(s - S) B^T of the tail.
  LIP_FAST_INLINE void rebuild() {
    const int first = a.drop ? 0 : a.k, from = first / 16 * 16, used = a.t - first;
    each_tile([&](std::int64_t row, std::int64_t rows) {
      float *const part_of_M = tile, *const scaled = tile + kTile * kPanel;
      multiply<W, float>(rows, m - from, columns, {room.Y + row * m, m, 1}, room.W_M + from, m, scaled, m, false);
      for (std::int64_t j = 0; j < a.q; j += kPanel) {
        const float* const panel = room.panels + j * a.t + first * kPanel;
        const Strided<float> of_A{scaled + first - from, m, 1};
        float* const to = a.M + row * a.m_stride + j;
        if (j + kPanel <= a.q) {
          multiply<W, float>(rows, kPanel, used, of_A, panel, kPanel, to, a.m_stride, !a.drop,
                             after(row, rows, j, kPanel, 0, a.q, rows));
          continue;
        }
        multiply<W, float>(rows, kPanel, used, of_A, panel, kPanel, part_of_M, kPanel, false);
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t x = 0; x < a.q - j; ++x) {
            float* const entry = to + i * a.m_stride + x;
            *entry = a.drop ? part_of_M[i * kPanel + x] : *entry + part_of_M[i * kPanel + x];
          }
        }
      }
    });
  }

  /// The block of M that comes after one of so many rows and columns, of those from ``first`` to ``last``: what a product
  /// of ``turns`` rows has the time to fetch.
  LIP_FAST_INLINE Ahead after(std::int64_t row, std::int64_t rows, std::int64_t j, std::int64_t columns, std::int64_t first,
                              std::int64_t last, std::int64_t turns) {
    j += columns;
    if (j >= last) {
      j = first;
      row += rows;
    }
    rows = room.fetches ? std::max<std::int64_t>(0, std::min(rows, a.l - row)) : 0;
    return Ahead(a.M + row * a.m_stride + j, a.m_stride, rows, 4 * std::min(columns, last - j), std::max<std::int64_t>(1, turns / 6));
  }

  /// The rows of M, some at a time.
  template <class Work>
  LIP_FAST_INLINE void each_tile(Work work) {
    crew.each(room.tiles.count(), [&](std::int64_t i) { work(room.tiles.begin(i), room.tiles.size(i)); });
  }

  /// Parts of X^T X for X (q, m), summed in double from block to block.
  LIP_FAST_INLINE void gram_parts(const float* X) {
    crew.each(room.of_Z.count(), [&](std::int64_t part) {
      double* const G = room.grams + part * m * m;
      std::fill(G, G + m * m, 0.0);
      for (std::int64_t done = 0; done < room.of_Z.size(part); done += kTile) {
        const std::int64_t rows = std::min<std::int64_t>(kTile, room.of_Z.size(part) - done);
        gram<W, float>(rows, m, X + (room.of_Z.begin(part) + done) * m, m, tile, false);
        for (int i = 0; i < m; ++i) {
          for (int c = i / W * W; c < m; ++c) G[i * m + c] += tile[i * m + c];
        }
      }
    });
  }

  double* sums_of(std::int64_t part) const { return room.sums + part * count_of_sums(a.t - a.k); }

  TruncatedStep& a;
  const TruncatedRoom& room;
  const Crew& crew;
  const int m, columns;  // padded, and not
  float* const tile;     // this thread's own
};

}  // namespace lip_fast::cpu
