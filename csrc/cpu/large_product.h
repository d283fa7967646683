// Products of large matrices: blocks of both operands are copied together, so that the caches hold what is multiplied.
#pragma once

#include "cpu/crew.h"
#include "cpu/multiply.h"
#include "cpu/projected_room.h"

namespace lip_fast::cpu {

/// Which part of a product there is to do.
enum class Part {
  kAll,
  kUpperC,  // entries on and above the diagonal, and some below
  kUpperB,  // B is upper triangular
};

template <int W>
class LargeProduct {
 public:
  /// C (m, n) = or += A (m, K) B (K, n), of which each row or each column is contiguous; those of C are its rows.
  ///
  /// An entry is the same sum in the same order however many threads there are. Two threads meet before and after.
  template <Part part = Part::kAll>
  static LIP_FAST_ONCE void run(const Crew& crew, const ProductRoom& room, std::int64_t m, std::int64_t n, std::int64_t K,
                                Strided<float> A, Strided<float> B, float* C, std::int64_t ldc, bool add = false) {
    float* const of_A = room.of_A + crew.rank() * kOfA;
    const std::int64_t blocks = (K + kDeep - 1) / kDeep, depth = blocks > 0 ? (K + blocks - 1) / blocks : 0;
    for (std::int64_t j0 = 0; j0 < n; j0 += kWide) {
      const std::int64_t columns = std::min<std::int64_t>(kWide, n - j0), panels = (columns + kColumns - 1) / kColumns;
      for (std::int64_t k0 = 0; k0 < K; k0 += depth) {
        const std::int64_t deep = std::min(depth, K - k0);
        crew.each(panels, [&](std::int64_t p) {
          const std::int64_t j = p * kColumns;
          copy_panel({B.at + k0 * B.row + (j0 + j) * B.column, B.row, B.column}, deep,
                     std::min<std::int64_t>(kColumns, columns - j), room.of_B + j * deep);
        });
        const auto take = [&](std::int64_t i0, std::int64_t rows) {
          copy_strips({A.at + i0 * A.row + k0 * A.column, A.row, A.column}, rows, deep, of_A);
          for (std::int64_t p = 0; p < panels; ++p) {
            const std::int64_t j = p * kColumns, last = j0 + j + kColumns;
            if (part == Part::kUpperC && last <= i0) continue;
            const std::int64_t used = part == Part::kUpperB ? std::min(deep, last - k0) : deep;
            if (used <= 0) continue;
            for (std::int64_t i = 0; i < rows; i += kRows) {
              block(used, of_A + i * deep, room.of_B + j * deep, C + (i0 + i) * ldc + j0 + j, ldc,
                    std::min<std::int64_t>(kRows, rows - i), std::min<std::int64_t>(kColumns, columns - j), add || k0 > 0);
            }
          }
        };
        if (part == Part::kUpperC) {
          // Dealt out in turns: upper rows are longer.
          constexpr int kFew = kTall / 2;
          for (std::int64_t i0 = crew.rank() * kFew; i0 < m; i0 += crew.size() * kFew) take(i0, std::min<std::int64_t>(kFew, m - i0));
        } else {
          const std::int64_t strips = (m + kRows - 1) / kRows;
          const std::int64_t first = crew.begin(strips) * kRows, last = std::min(m, crew.end(strips) * kRows);
          for (std::int64_t i0 = first; i0 < last; i0 += kTall) take(i0, std::min<std::int64_t>(kTall, last - i0));
        }
        crew.sync();
      }
    }
  }

 private:
  // What the registers hold of C: 24 vectors of 32, or 12 of 16.
  static constexpr int kRows = W == 16 ? 12 : 6, kColumns = 2 * W;
  static_assert(kTall / 2 % kRows == 0);

  /// Rows of B one after the other, filled up with zeros.
  static LIP_FAST_INLINE void copy_panel(Strided<float> B, std::int64_t K, std::int64_t n, float* to) {
    if (B.column == 1) {
      for (std::int64_t k = 0; k < K; ++k) copy_row(B.at + k * B.row, n, to + k * kColumns);
      return;
    }
    for (int j = 0; j < kColumns; j += W) {
      const float* const from = B.at + j * B.column;
      const std::int64_t whole = j + W <= n ? K / W * W : 0;
      for (std::int64_t k = 0; k < whole; k += W) transpose<W>(from + k, B.column, to + k * kColumns + j, kColumns);
      for (std::int64_t k = whole; k < K; ++k) {
        for (int i = 0; i < W; ++i) to[k * kColumns + j + i] = j + i < n ? from[k + i * B.column] : 0.0f;
      }
    }
  }

  static LIP_FAST_INLINE void copy_row(const float* from, std::int64_t n, float* to) {
    if (n == kColumns) {
      for (int j = 0; j < kColumns; j += W) store<W>(to + j, load<W>(from + j));
    } else {
      for (int j = 0; j < kColumns; ++j) to[j] = j < n ? from[j] : 0.0f;
    }
  }

  /// kRows rows of A at a time, one column of them after the other.
  static LIP_FAST_INLINE void copy_strips(Strided<float> A, std::int64_t m, std::int64_t K, float* to) {
    for (std::int64_t i = 0; i < m; i += kRows) {
      const std::int64_t rows = std::min<std::int64_t>(kRows, m - i);
      const float* const from = A.at + i * A.row;
      float* const strip = to + i * K;
      std::int64_t k = 0;
      // Whole vectors where A has the values that are too many: what comes next is written over them.
      if (kRows <= W && i + W <= m) {
        if (A.row == 1) {
          for (; k < K; ++k) store<W>(strip + k * kRows, load<W>(from + k * A.column));
        } else {
          for (; k + W <= K; k += W) transpose<W>(from + k, A.row, strip + k * kRows, kRows);
        }
      }
      for (; k < K; ++k) {
        for (int r = 0; r < kRows; ++r) strip[k * kRows + r] = r < rows ? from[r * A.row + k * A.column] : 0.0f;
      }
    }
  }

  static LIP_FAST_INLINE void block(std::int64_t K, const float* A, const float* B, float* C, std::int64_t ldc, std::int64_t rows,
                                    std::int64_t columns, bool add) {
    // Lines of B to fetch ahead of their use: they come from the second cache.
    constexpr int kAhead = 16;
    using V = Lanes<float, W>;
    V left[kRows], right[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const float* const row = C + (i < rows ? i : 0) * ldc;
      __builtin_prefetch(row, 1, 3);
      __builtin_prefetch(row + W, 1, 3);
      left[i] = right[i] = V{};
    }
    for (std::int64_t k = 0; k < K; ++k) {
      const float* const b = B + k * kColumns;
      const V b_left = load<W>(b), b_right = load<W>(b + W);
      __builtin_prefetch(b + kAhead * kColumns, 0, 3);
      __builtin_prefetch(b + kAhead * kColumns + W, 0, 3);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const float a = A[k * kRows + i];
        left[i] += a * b_left;
        right[i] += a * b_right;
      }
    }
    if (rows == kRows && columns == kColumns) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        float* const c = C + i * ldc;
        store<W>(c, add ? load<W>(c) + left[i] : left[i]);
        store<W>(c + W, add ? load<W>(c + W) + right[i] : right[i]);
      }
      return;
    }
    float whole[kRows * kColumns];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      store<W>(whole + i * kColumns, left[i]);
      store<W>(whole + i * kColumns + W, right[i]);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        float& c = C[i * ldc + j];
        c = add ? c + whole[i * kColumns + j] : whole[i * kColumns + j];
      }
    }
  }
};

}  // namespace lip_fast::cpu
