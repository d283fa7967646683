// The Cholesky factor of a large matrix and its inverse, in float, by products of blocks.
#pragma once

#include <cmath>

#include "cpu/crew.h"
#include "cpu/multiply.h"
#include "cpu/projected_room.h"

namespace lip_fast::cpu {

/// R^-1 of G = R^T R (n, n), of which the upper triangle is read and overwritten. Rows are ``ld`` apart, a multiple of
/// kEdge, with numbers up to there; entries below the blocks on the diagonal of the inverse are left as they were.
template <int W>
class Triangular {
 public:
  /// corner: (kEdge, kEdge) that all threads share; block: (kEdge, kEdge) of each.
  /// lengths: (n) of the columns of which G has the products.
  LIP_FAST_INLINE Triangular(const Crew& crew, std::int64_t n, std::int64_t ld, float* G, const float* lengths, float* inverse,
                             float* corner, float* block)
      : crew_(crew), n_(n), ld_(ld), G_(G), lengths_(lengths), inverse_(inverse), corner_(corner), block_(block) {}

  /// The smallest pivot, as a share of the length of its column, is written; 0 of a matrix without a factor.
  LIP_FAST_INLINE void factor(float* least) {
    crew_.one([&] { *least = 1; });
    for (std::int64_t first = 0; first < n_; first += kEdge) {
      const std::int64_t edge = std::min<std::int64_t>(kEdge, n_ - first), below = first + edge;
      // What the rows above leave of these.
      each_strip(first, [&](std::int64_t j) {
        if (first == 0) return;
        multiply<W, float>(edge, kStrip, first, {G_ + first, 1, ld_}, G_ + j, ld_, block_, kStrip, false);
        for (std::int64_t r = 0; r < edge; ++r) {
          for (int c = 0; c < kStrip; ++c) G_[(first + r) * ld_ + j + c] -= block_[r * kStrip + c];
        }
      });
      crew_.one([&] { *least = std::min(*least, pivots(first, edge)); });
      if (!(*least > 0)) return;
      each_strip(below, [&](std::int64_t j) {
        multiply<W, float>(edge, kStrip, edge, {corner_, 1, kEdge}, G_ + first * ld_ + j, ld_, block_, kStrip, false);
        for (std::int64_t r = 0; r < edge; ++r) std::copy(block_ + r * kStrip, block_ + (r + 1) * kStrip, G_ + (first + r) * ld_ + j);
      });
    }
  }

  /// After factor().
  LIP_FAST_INLINE void invert() {
    // Pairs of a long column of blocks and a short one.
    const std::int64_t count = (n_ + kEdge - 1) / kEdge;
    crew_.each((count + 1) / 2, [&](std::int64_t i) {
      column(i);
      if (count - 1 - i != i) column(count - 1 - i);
    });
  }

 private:
  static constexpr int kStrip = 32;

  /// Columns from ``first`` on, some at a time.
  template <class Work>
  LIP_FAST_INLINE void each_strip(std::int64_t first, Work work) {
    crew_.each((n_ - first + kStrip - 1) / kStrip, [&](std::int64_t i) { work(first + i * kStrip); });
  }

  /// The block on the diagonal becomes its factor, of which the inverse goes to its place and to the corner.
  LIP_FAST_INLINE float pivots(std::int64_t first, std::int64_t edge) {
    float* const block = G_ + first * ld_ + first;
    float least = 1;
    for (std::int64_t k = 0; k < edge; ++k) {
      float* const row = block + k * ld_;
      if (!(row[k] > 0)) return 0;
      const float inverse = 1 / std::sqrt(row[k]);
      for (std::int64_t j = k / W * W; j < kEdge; j += W) store<W>(row + j, load<W>(row + j) * inverse);
      for (std::int64_t i = k + 1; i < edge; ++i) {
        const float c = row[i];
        for (std::int64_t j = i / W * W; j < kEdge; j += W) {
          float* const to = block + i * ld_ + j;
          store<W>(to, load<W>(to) - c * load<W>(row + j));
        }
      }
      least = std::min(least, row[k] / lengths_[first + k]);
    }
    std::fill(corner_, corner_ + kEdge * kEdge, 0.0f);
    for (std::int64_t i = edge - 1; i >= 0; --i) {
      float *const row = corner_ + i * kEdge, *const from = block + i * ld_;
      const float inverse = 1 / from[i];
      for (std::int64_t j = i / W * W; j < kEdge; j += W) {
        Lanes<float, W> sum{};
        for (std::int64_t k = i + 1; k < std::min(edge, j + W); ++k) sum -= from[k] * load<W>(corner_ + k * kEdge + j);
        store<W>(row + j, sum * inverse);
      }
      row[i] = inverse;
    }
    for (std::int64_t i = 0; i < edge; ++i) std::copy(corner_ + i * kEdge, corner_ + (i + 1) * kEdge, inverse_ + (first + i) * ld_ + first);
    return least;
  }

  /// Column ``b`` of the blocks of the inverse, from the diagonal upwards.
  LIP_FAST_INLINE void column(std::int64_t b) {
    const std::int64_t j = b * kEdge;
    for (std::int64_t i = j - kEdge; i >= 0; i -= kEdge) {
      multiply<W, float>(kEdge, kEdge, std::min(j + kEdge, n_) - i - kEdge, {G_ + i * ld_ + i + kEdge, ld_, 1},
                         inverse_ + (i + kEdge) * ld_ + j, ld_, block_, kEdge, false);
      for (int e = 0; e < kEdge * kEdge; ++e) block_[e] = -block_[e];
      multiply<W, float>(kEdge, kEdge, kEdge, {inverse_ + i * ld_ + i, ld_, 1}, block_, kEdge, inverse_ + i * ld_ + j, ld_, false);
    }
  }

  const Crew& crew_;
  const std::int64_t n_, ld_;
  float* const G_;
  const float* const lengths_;
  float *const inverse_, *const corner_, *const block_;
};

}  // namespace lip_fast::cpu
