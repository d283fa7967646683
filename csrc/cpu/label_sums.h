#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// The sums of a small batch with class indices, in one pass over X (n, q):
///
///   numerator_i = sum_n (x_n . b_i) (a_i[y_n] - bias . a_i),  denominator_i = sum_n (x_n . b_i)^2
///
/// Rows whose index is outside 0 .. l - 1 do not count; ``masked`` counts those that are not ``ignored`` either.
struct LabelSums {
  const float* X;         // (n, q), rows x_stride apart
  const std::int64_t* y;  // (n)
  const float *A, *B;     // (l, r), (q, r)
  const float* bias;      // (l), or null
  std::int64_t n, q, l, r, x_stride;
  std::int64_t a_row, a_column, b_row, b_column;  // strides; faster where the columns of B are contiguous
  std::int64_t ignored;
  double *numerator, *denominator, *energy;  // (r), (r), ()
  std::int64_t* masked;
};

void label_sums(const LabelSums& arguments);

}  // namespace lip_fast::cpu
