// Products of rows with rows, both contiguous.
#pragma once

#include "cpu/lanes.h"

namespace lip_fast::cpu {

/// The sum of the lanes.
template <int W, class T>
LIP_FAST_INLINE T total(Lanes<T, W> x) {
#pragma GCC unroll 4
  for (int step = W / 2; step > 0; step /= 2) {
    Integers<T, W> lanes;
    for (int i = 0; i < W; ++i) lanes[i] = (i + step) % W;
    x += pick<T, W>(x, x, lanes);
  }
  return x[0];
}

/// Products (R, N) of rows of A and B, n values each, ``apart`` from row to row, and the squares (R) of the rows of A, which
/// cost nothing where they are not used.
template <int W, int R, int N, class T>
LIP_FAST_INLINE void dots(std::int64_t n, const T* A, std::int64_t a_apart, const T* B, std::int64_t b_apart, T* products,
                          int apart, T* squares) {
  const std::int64_t whole = n / W * W;
  Lanes<T, W> sum[R][N], square[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    square[i] = Lanes<T, W>{};
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum[i][j] = Lanes<T, W>{};
  }
  for (std::int64_t x = 0; x < whole; x += W) {
    Lanes<T, W> b[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) b[j] = load<W>(B + j * b_apart + x);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Lanes<T, W> a = load<W>(A + i * a_apart + x);
      square[i] += a * a;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sum[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    squares[i] = total<W, T>(square[i]);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) products[i * apart + j] = total<W, T>(sum[i][j]);
    for (std::int64_t x = whole; x < n; ++x) {
      const T a = A[i * a_apart + x];
      squares[i] += a * a;
      for (int j = 0; j < N; ++j) products[i * apart + j] += a * B[j * b_apart + x];
    }
  }
}

}  // namespace lip_fast::cpu
