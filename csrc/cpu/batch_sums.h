// What a refit takes of a batch: sums over its rows of the products of features and labels along some directions.
#pragma once

#include "cpu/batch.h"
#include "cpu/multiply.h"
#include "cpu/room.h"

namespace lip_fast::cpu {

/// The sums of rows ``first`` to ``last`` of a batch: r numerators, denominators and sums of x . b each, the energy of
/// the rows, and how many of them have a class that there is not.
///
/// B: (q, columns), rows ``ldb`` apart, columns a multiple of W; the directions are those from ``at`` on.
/// of_class: class -> its r values on the side of the classes, of one of l.
template <int W, class OfClass>
LIP_FAST_INLINE void batch_sums(const Batch& batch, std::int64_t first, std::int64_t last, std::int64_t l, std::int64_t q,
                                const float* B, std::int64_t ldb, std::int64_t columns, std::int64_t at, std::int64_t r, float* room,
                                double* sums, OfClass of_class) {
  std::fill(sums, sums + count_of_sums(r), 0.0);
  for (std::int64_t row = first; row < last; row += kTile) {
    const std::int64_t rows = std::min<std::int64_t>(kTile, last - row);
    float *const P = room, *const block = P + kTile * columns;
    float energy[kTile] = {};
    for (std::int64_t j = 0; j < q; j += kFeatures) {
      // Copied: rows that are a power of two apart would drive each other out of the first cache.
      constexpr int kApart = kFeatures + 16;
      const std::int64_t depth = std::min<std::int64_t>(kFeatures, q - j);
      for (std::int64_t i = 0; i < rows; ++i) {
        const float* const x = batch.X + (row + i) * batch.x_stride + j;
        float* const to = block + i * kApart;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t c = 0; c < depth; ++c) {
          to[c] = x[c];
          sum += x[c] * x[c];
        }
        energy[i] += sum;
      }
      multiply<W, float>(rows, columns, depth, {block, kApart, 1}, B + j * ldb, ldb, P, columns, j > 0);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t label = batch.y[row + i];
      if (label < 0 || label >= l) {
        sums[3 * r + 1] += label != batch.ignored;
        continue;
      }
      sums[3 * r] += energy[i];
      const float* const a = of_class(label);
      for (std::int64_t c = 0; c < r; ++c) {
        const double p = P[i * columns + at + c];
        sums[c] += p * a[c];
        sums[r + c] += p * p;
        sums[2 * r + c] += p;
      }
    }
  }
}

}  // namespace lip_fast::cpu
