#pragma once

#include <cstdint>

namespace lip_fast::cpu {

/// All singular values of M (l, q), d = min(l, q), and the vectors of all but the top ``rank``, by one-sided Jacobi on
/// the Gram matrix of the small side in double: for small d, where starting BLAS and LAPACK costs more than the
/// arithmetic.
struct TailSvd {
  const float* M;
  std::int64_t l, q, row_stride, column_stride;
  std::int64_t rank;
  float *A, *S, *B;  // (l, d - rank), (d), (q, d - rank)
};

/// Returns the status word.
int tail_svd(const TailSvd& arguments);

}  // namespace lip_fast::cpu
