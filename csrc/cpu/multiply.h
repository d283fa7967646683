// Products of a skinny matrix in registers: C = A B or C += A B for a B that the cache holds.
#pragma once

#include <algorithm>

#include "cpu/lanes.h"

namespace lip_fast::cpu {

/// A matrix of which entry (i, j) is at ``at[i * row + j * column]``.
template <class T>
struct Strided {
  const T* at;
  std::int64_t row, column;
};

/// Nothing that will be read soon.
struct NothingAhead {
  LIP_FAST_INLINE void fetch() {}
};

/// What the product after this one reads, or writes: rows that are fetched a few lines at a time while this one runs.
/// They are too short for the processor to see them coming.
class Ahead {
 public:
  /// ``rows`` of ``bytes`` each, ``apart`` values from each other, in so many ``turns``.
  LIP_FAST_INLINE Ahead(const float* at, std::int64_t apart, std::int64_t rows, std::int64_t bytes, std::int64_t turns)
      : at_(reinterpret_cast<const char*>(at)), apart_(apart * 4), rows_(rows), bytes_(bytes), turn_((rows + turns - 1) / turns) {}

  LIP_FAST_INLINE void fetch() {
    for (std::int64_t i = 0; i < turn_ && row_ < rows_; ++i, ++row_) {
      for (std::int64_t x = 0; x < bytes_; x += 64) __builtin_prefetch(at_ + row_ * apart_ + x, 0, 2);
    }
  }

 private:
  const char* at_;
  std::int64_t apart_, rows_, bytes_, turn_, row_ = 0;
};

/// C (R, N W) = or += A (R, K) B (K, N W), all of C in registers. The rows of B and of C are contiguous.
template <int W, int R, int N, class T>
LIP_FAST_INLINE void multiply_block(std::int64_t K, Strided<T> A, const T* B, std::int64_t ldb, T* C, std::int64_t ldc,
                                    bool add) {
  Lanes<T, W> sum[R][N];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[i][j] = Lanes<T, W>{};
  }
  for (std::int64_t k = 0; k < K; ++k) {
    Lanes<T, W> b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = load<W>(B + k * ldb + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T a = A.at[i * A.row + k * A.column];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      T* const c = C + i * ldc + j * W;
      store<W>(c, add ? load<W>(c) + sum[i][j] : sum[i][j]);
    }
  }
}

template <int W, int R, int N, class T, class Next>
LIP_FAST_INLINE void multiply_strip(std::int64_t rows, std::int64_t K, Strided<T> A, const T* B, std::int64_t ldb, T* C,
                                    std::int64_t ldc, bool add, Next& next) {
  const auto from = [&](std::int64_t i) { return Strided<T>{A.at + i * A.row, A.row, A.column}; };
  std::int64_t i = 0;
  for (; i + R <= rows; i += R) {
    next.fetch();
    multiply_block<W, R, N>(K, from(i), B, ldb, C + i * ldc, ldc, add);
  }
  for (; i + 4 <= rows; i += 4) multiply_block<W, 4, N>(K, from(i), B, ldb, C + i * ldc, ldc, add);
  for (; i < rows; ++i) multiply_block<W, 1, N>(K, from(i), B, ldb, C + i * ldc, ldc, add);
}

/// C (rows, columns) = or += A (rows, K) B (K, columns), whose columns are a multiple of W.
///
/// An entry of C is the same sum in the same order whatever the block that it is in: the bits do not depend on how
/// rows and columns are divided. The blocks fill the registers: 32 where vectors have 64 bytes, else 16.
template <int W, class T, class Next = NothingAhead>
LIP_FAST_ONCE void multiply(std::int64_t rows, std::int64_t columns, std::int64_t K, Strided<T> A, const T* B,
                            std::int64_t ldb, T* C, std::int64_t ldc, bool add, Next next = Next()) {
  std::int64_t j = 0;
  if constexpr (W * sizeof(T) == 64) {
    for (; j + 4 * W <= columns; j += 4 * W) multiply_strip<W, 6, 4>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
    if (j + 3 * W <= columns) {
      multiply_strip<W, 8, 3>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
      j += 3 * W;
    }
    if (j + 2 * W <= columns) {
      multiply_strip<W, 12, 2>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
      j += 2 * W;
    }
    if (j < columns) multiply_strip<W, 12, 1>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
  } else {
    for (; j + 2 * W <= columns; j += 2 * W) multiply_strip<W, 6, 2>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
    if (j < columns) multiply_strip<W, 8, 1>(rows, K, A, B + j, ldb, C + j, ldc, add, next);
  }
}

/// The upper triangle of G (m, m) = or += X^T X for X (n, m), and some entries below; m is a multiple of W.
template <int W, class T>
LIP_FAST_INLINE void gram(std::int64_t n, int m, const T* X, std::int64_t ldx, T* G, bool add) {
  for (int i = 0; i < m; i += 6) {
    const int from = i / W * W;
    multiply<W, T>(std::min(6, m - i), m - from, n, {X + i, 1, ldx}, X + from, ldx, G + i * m + from, m, add);
  }
}

}  // namespace lip_fast::cpu
