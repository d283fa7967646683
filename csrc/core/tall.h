// Tall matrices (n, m), m <= 128, in tiles of a few rows: Gram matrices, products with small matrices, and the pass of
// Cholesky QR made of both. A block of a grid takes every ``blocks``-th tile and writes the Gram matrix of its tiles as
// one of ``blocks`` partial sums, so that sums are taken in a fixed order.
#pragma once

#include <cstdint>

#include "core/cholesky.h"
#include "core/config.h"
#include "core/real.h"

namespace lip_fast {

/// (rows, m), column j contiguous at ``data + j * rows``.
template <class T>
struct Tall {
  T* data;
  std::int64_t rows;
};

/// Rows of a tile. With 128 columns, two tiles of 16 rows and the factor are what 99 kB of shared memory hold.
LIP_FAST_FN int tile_rows(int m) { return m <= 96 ? 32 : 16; }
/// Distance of a tile's columns: a multiple of 4 for vector loads, and not one of 32 banks.
LIP_FAST_FN int tile_pitch(int m) { return tile_rows(m) + 4; }
/// Columns come in fours.
LIP_FAST_FN int fours(int m) { return (m + 3) / 4; }
LIP_FAST_FN int tile_size(int m) { return 4 * fours(m) * tile_pitch(m); }
LIP_FAST_FN std::int64_t tiles(std::int64_t rows, int m) { return (rows + tile_rows(m) - 1) / tile_rows(m); }

/// Rows first .. of X into ``tile``, zeros beyond its last row and column.
template <class Team, class T>
LIP_FAST_FN void load_tile(Team& team, const Tall<const T>& X, int m, std::int64_t first, T* tile) {
  const int rows = tile_rows(m), ld = tile_pitch(m);
  for (int e = team.rank(); e < 4 * fours(m) * rows; e += team.size()) {
    const int j = e / rows, r = e % rows;
    tile[j * ld + r] = j < m && first + r < X.rows ? X.data[j * X.rows + first + r] : T(0);
  }
  team.sync();
}

/// G (m, m) = or += tile^T tile, both triangles, of the first m columns of a tile of ``rows`` rows, a power of two.
template <class Team, class T>
LIP_FAST_FN void gram_of_tile(Team& team, const T* tile, int rows, int ld, int m, bool first, T* G) {
  const int side = fours(m);
  for (int unit = team.rank(); unit < side * side; unit += team.size()) {
    const int bi = unit / side, bj = unit % side;
    if (bj < bi) continue;
    T sum[4][4] = {};
    for (int step = 0; step < rows; ++step) {
      // Each unit starts at another row: neighbours read from different banks.
      const int r = (step + unit) & (rows - 1);
      T x[4], y[4];
      for (int a = 0; a < 4; ++a) x[a] = tile[(4 * bi + a) * ld + r];
      for (int b = 0; b < 4; ++b) y[b] = tile[(4 * bj + b) * ld + r];
      for (int a = 0; a < 4; ++a) {
        for (int b = 0; b < 4; ++b) sum[a][b] += x[a] * y[b];
      }
    }
    for (int a = 0; a < 4; ++a) {
      for (int b = 0; b < 4; ++b) {
        const int i = 4 * bi + a, j = 4 * bj + b;
        if (i >= m || j >= m) continue;
        const T value = first ? sum[a][b] : G[i * m + j] + sum[a][b];
        G[i * m + j] = value;
        if (bi < bj) G[j * m + i] = value;
      }
    }
  }
}

/// out (rows of a tile, columns) = tile (m columns) P, P (m, columns) with rows ``ldp`` apart; ``triangular`` where it
/// is zero below its diagonal.
template <class Team, class T>
LIP_FAST_FN void multiply_tile(Team& team, const T* tile, int m, const T* P, int ldp, int columns, bool triangular,
                               T* out) {
  const int ld = tile_pitch(m), row_fours = tile_rows(m) / 4;
  for (int unit = team.rank(); unit < fours(columns) * row_fours; unit += team.size()) {
    const int r = 4 * (unit % row_fours), c = 4 * (unit / row_fours);
    const int width = columns - c < 4 ? columns - c : 4;
    const int last = triangular && c + 4 < m ? c + 4 : m;
    T sum[4][4] = {};
    for (int i = 0; i < last; ++i) {
      T p[4];
      for (int b = 0; b < 4; ++b) p[b] = b < width ? P[i * ldp + c + b] : T(0);
      for (int a = 0; a < 4; ++a) {
        const T x = tile[i * ld + r + a];
        for (int b = 0; b < 4; ++b) sum[a][b] += x * p[b];
      }
    }
    for (int b = 0; b < 4; ++b) {
      for (int a = 0; a < 4; ++a) out[(c + b) * ld + r + a] = sum[a][b];
    }
  }
  team.sync();
}

/// G (m, m) with rows ``ld`` apart = the sum of ``count`` partial Gram matrices.
template <class Team, class T>
LIP_FAST_FN void sum_partials(Team& team, const T* partials, int count, int m, T* G, int ld) {
  for (int e = team.rank(); e < m * m; e += team.size()) {
    T sum = 0;
    for (int b = 0; b < count; ++b) sum += partials[static_cast<std::int64_t>(b) * m * m + e];
    G[e / m * ld + e % m] = sum;
  }
  team.sync();
}

/// Partial Gram matrix of X (n, m). shared: tile_size(m).
template <class Team, class T>
LIP_FAST_FN void gram_block(Team& team, const Tall<const T>& X, int m, T* partials, int block, int blocks, T* shared) {
  T* G = partials + static_cast<std::int64_t>(block) * m * m;
  bool first = true;
  for (std::int64_t tile = block; tile < tiles(X.rows, m); tile += blocks) {
    load_tile(team, X, m, tile * tile_rows(m), shared);
    gram_of_tile(team, shared, tile_rows(m), tile_pitch(m), m, first, G);
    team.sync();
    first = false;
  }
}

/// One pass of Cholesky QR: out = X [prior] P with P = R^-1 of the Gram matrix R^T R that ``partials`` sum to.
template <class T>
struct Pass {
  Tall<const T> X;
  int m;
  const T* partials;  // (count, m, m): Gram matrix of X, or of that whose factor ``prior`` follows from
  int count;
  const T* prior;  // (m, m) upper triangular, or null for the identity
  Tall<T> out;
  T* gram;   // (blocks, m, m) partial Gram matrices of out, or null
  T* R;      // (m, m), or null
  T* P;      // (m, m), or null
  int* info;  // independent columns, -1 where not finite
};

LIP_FAST_FN int pass_shared(int m) { return m * m + 2 * m + 2 * tile_size(m); }

/// shared: pass_shared(m) values.
template <class Team, class T>
LIP_FAST_FN void pass_block(Team& team, const Pass<T>& a, int block, int blocks, T* shared) {
  const int m = a.m;
  T* factors = shared;
  T* scale = factors + m * m;
  T* pivot = scale + m;
  T* from = pivot + m;
  T* to = from + tile_size(m);
  sum_partials(team, a.partials, a.count, m, factors, m);
  // Every block factors for itself: cheaper than to wait for one that does.
  const int independent = factor(team, factors, m, m, scale, pivot);
  if (independent < 0) {
    // As if all columns depended on others; the status word will say that none of it can be used.
    for (int j = team.rank(); j < m; j += team.size()) pivot[j] = scale[j] = T(0);
    team.sync();
  }
  if (block == 0) {
    if (team.rank() == 0) *a.info = independent;
    for (int e = team.rank(); e < m * m; e += team.size()) {
      if (a.R != nullptr) a.R[e] = upper(factors, m, scale, pivot, e / m, e % m);
    }
    team.sync();
  }
  invert(team, factors, m, m, scale, pivot);
  if (block == 0 && a.P != nullptr) {
    for (int e = team.rank(); e < m * m; e += team.size()) a.P[e] = factors[e];
  }
  bool first = true;
  for (std::int64_t tile = block; tile < tiles(a.X.rows, m); tile += blocks) {
    const std::int64_t row = tile * tile_rows(m);
    T *x = from, *y = to;
    load_tile(team, a.X, m, row, x);
    if (a.prior != nullptr) {
      multiply_tile(team, x, m, a.prior, m, m, true, y);
      T* const swap = x;
      x = y;
      y = swap;
    }
    multiply_tile(team, x, m, factors, m, m, true, y);
    const int rows = tile_rows(m);
    for (int e = team.rank(); e < m * rows; e += team.size()) {
      const int j = e / rows, r = e % rows;
      if (row + r < a.out.rows) a.out.data[j * a.out.rows + row + r] = y[j * tile_pitch(m) + r];
    }
    if (a.gram != nullptr) {
      gram_of_tile(team, y, rows, tile_pitch(m), m, first, a.gram + static_cast<std::int64_t>(block) * m * m);
    }
    team.sync();
    first = false;
  }
}

/// out (n, t) = X (n, m) W (m, t), entry (r, c) at ``r * row_stride + c * column_stride``.
template <class T>
struct Apply {
  Tall<const T> X;
  int m;
  const T* W;
  int t;
  T* out;
  std::int64_t row_stride, column_stride;
  T* gram;  // (blocks, t, t), or null
};

LIP_FAST_FN int apply_shared(int m) { return 2 * tile_size(m); }

/// shared: apply_shared(m) values; t <= m.
template <class Team, class T>
LIP_FAST_FN void apply_block(Team& team, const Apply<T>& a, int block, int blocks, T* shared) {
  T *x = shared, *y = shared + tile_size(a.m);
  const int rows = tile_rows(a.m), ld = tile_pitch(a.m);
  bool first = true;
  for (std::int64_t tile = block; tile < tiles(a.X.rows, a.m); tile += blocks) {
    const std::int64_t row = tile * rows;
    load_tile(team, a.X, a.m, row, x);
    multiply_tile(team, x, a.m, a.W, a.t, a.t, false, y);
    // Neighbours in rank write neighbours in memory.
    const bool across = a.column_stride == 1;
    for (int e = team.rank(); e < a.t * rows; e += team.size()) {
      const int c = across ? e % a.t : e / rows, r = across ? e / a.t : e % rows;
      if (row + r < a.X.rows) a.out[(row + r) * a.row_stride + c * a.column_stride] = y[c * ld + r];
    }
    if (a.gram != nullptr) {
      gram_of_tile(team, y, rows, ld, a.t, first, a.gram + static_cast<std::int64_t>(block) * a.t * a.t);
    }
    team.sync();
    first = false;
  }
}

}  // namespace lip_fast
