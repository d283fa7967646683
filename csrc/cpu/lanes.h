// Vectors of the compiler's extensions: one source for every width. No intrinsics, so that any processor builds it.
//
// A file that compiles a kernel for an instruction set names it in a pragma before it includes this one, and those that
// are built on it. They hold templates over the number of lanes and nothing else, since the linker keeps one copy of
// what several files compile alike: no other set has the same number. What is not of a set is included before.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/inline.h"

namespace lip_fast::cpu {

template <class T, int W>
struct LanesOf {
  typedef T Values __attribute__((vector_size(W * sizeof(T))));
  using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef Integer Integers __attribute__((vector_size(W * sizeof(T))));
};

/// W values of T, with arithmetic lane by lane.
template <class T, int W>
using Lanes = typename LanesOf<T, W>::Values;

/// As many integers of the same size: what a comparison gives, and what names lanes.
template <class T, int W>
using Integers = typename LanesOf<T, W>::Integers;

template <int W, class T>
LIP_FAST_INLINE Lanes<T, W> load(const T* from) {
  Lanes<T, W> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <int W, class T>
LIP_FAST_INLINE void store(T* to, Lanes<T, W> x) {
  std::memcpy(to, &x, sizeof x);
}

/// Lanes of a and b beside each other, by their numbers: W is the first one of b.
template <class T, int W>
LIP_FAST_INLINE Lanes<T, W> pick(Lanes<T, W> a, Lanes<T, W> b, Integers<T, W> lanes) {
#if defined(__clang__)
  Lanes<T, W> x;
  for (int i = 0; i < W; ++i) x[i] = lanes[i] < W ? a[lanes[i]] : b[lanes[i] - W];
  return x;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

/// to (W, W) = the transpose of from (W, W); the rows of both are contiguous.
template <int W>
LIP_FAST_INLINE void transpose(const float* from, std::int64_t apart, float* to, std::int64_t to_apart) {
  Lanes<float, W> row[W], next[W];
  Integers<float, W> low, high;
  for (int i = 0; i < W; ++i) {
    low[i] = i / 2 + i % 2 * W;
    high[i] = W / 2 + i / 2 + i % 2 * W;
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) row[i] = load<W>(from + i * apart);
  // Each pass interleaves rows half of all apart: their numbers and those of the lanes trade one bit.
#pragma GCC unroll 4
  for (int pass = 1; pass < W; pass *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = pick<float, W>(row[i], row[i + W / 2], low);
      next[2 * i + 1] = pick<float, W>(row[i], row[i + W / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) row[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store<W>(to + i * to_apart, row[i]);
}

/// to (rows, columns) = the transpose of from (columns, rows); the rows of both are contiguous.
template <int W>
LIP_FAST_INLINE void transpose_all(std::int64_t rows, std::int64_t columns, const float* from, std::int64_t apart, float* to,
                                   std::int64_t to_apart) {
  const std::int64_t whole_rows = rows / W * W, whole_columns = columns / W * W;
  for (std::int64_t c = 0; c < whole_columns; c += W) {
    for (std::int64_t i = 0; i < whole_rows; i += W) transpose<W>(from + c * apart + i, apart, to + i * to_apart + c, to_apart);
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t i = c < whole_columns ? whole_rows : 0; i < rows; ++i) to[i * to_apart + c] = from[c * apart + i];
  }
}

}  // namespace lip_fast::cpu
