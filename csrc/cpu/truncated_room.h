// How a truncated step is divided, and where it keeps what it makes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/truncated_step.h"

namespace lip_fast::cpu {

// Rows of M that a core takes at a time, with what they are multiplied by in its caches: 8 blocks of registers.
constexpr int kTile = 48;
// Columns of M at a time in M V, so that these rows of V are in the first cache.
constexpr int kDepth = 128;
// Columns of M at a time in M^T Q: 16 blocks of registers.
constexpr int kSlice = 96;
// Columns of M at a time in the rebuild, and rows of Z and B: four vectors.
constexpr int kPanel = 64;
// Bytes of M beyond which what is read next is fetched ahead: below, it costs more than it gains.
constexpr std::int64_t kFar = 16 << 20;
// Parts of a sum over rows. They divide the work, and are added up in order.
constexpr int kParts = 8;
// Rows of a part at least, of a matrix and of a batch.
constexpr int kFewRows = 24;

constexpr std::int64_t rounded_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Rows in consecutive parts of ``rows`` each, of which the last one may have fewer.
struct Parts {
  std::int64_t total, rows;
  std::int64_t count() const { return (total + rows - 1) / rows; }
  std::int64_t begin(std::int64_t part) const { return part * rows; }
  std::int64_t size(std::int64_t part) const { return std::min(total, (part + 1) * rows) - part * rows; }
};

/// Of a sum.
inline Parts parts_of_sum(std::int64_t total) {
  return {total, rounded_up(std::max<std::int64_t>(kFewRows, (total + kParts - 1) / kParts), kFewRows)};
}

/// Of work that each row is alone in: fewer rows at a time where there would be too few parts for many threads.
inline Parts tiles_of(std::int64_t total) {
  return {total, std::min<std::int64_t>(kTile, rounded_up(std::max<std::int64_t>(1, (total + 15) / 16), 6))};
}

/// Where a step keeps what it makes. ``m`` below is the number of columns, padded.
struct Room {
  int m;
  Parts tiles, slabs, of_Y, of_Z, of_batch;
  float *V, *F, *Y, *Z, *panels, *C, *W_A, *W_B, *W_M;  // (q, m), (q, 16), (l, m), (q, m), ..., (m, 16), (m, m) each
  float* tile;                                          // of each thread
  double *grams, *sums, *small, *least;                 // of each part; (6, m, m); ()
  bool* again;          // whether a stage is to be taken once more
  std::int64_t tile_size;
  bool fetches;  // whether M is read from farther than the caches of a core

  static int padded(int columns) { return static_cast<int>(rounded_up(columns, 16)); }
};

/// Lays the room out from an address, or counts its bytes where that is null.
inline std::int64_t lay_out(Room& room, const TruncatedStep& a, char* at) {
  const std::int64_t m = Room::padded(a.t + a.fresh), r = a.t - a.k;
  room.m = static_cast<int>(m);
  room.fetches = a.l * a.q * 4 > kFar;
  room.tiles = tiles_of(a.l);
  room.slabs = {a.q, kPanel};
  room.of_Y = parts_of_sum(a.l);
  room.of_Z = parts_of_sum(a.q);
  room.of_batch = parts_of_sum(a.n);
  room.tile_size = std::max<std::int64_t>({kTile * (kSlice + 16), kTile * (kDepth + 16) + (kTile + 1) * m, 2 * kTile * m, m * m, kTile * (kPanel + m), kPanel * m});
  std::int64_t bytes = 0;
  const auto place = [&](auto*& pointer, std::int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    if (at != nullptr) pointer = reinterpret_cast<T*>(at + bytes);
    bytes += rounded_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
  };
  place(room.V, a.q * m);
  place(room.F, a.q * 16);
  place(room.Y, a.l * m);
  place(room.Z, a.q * m);
  place(room.panels, rounded_up(a.q, kPanel) * a.t);
  place(room.C, m * 16);
  place(room.W_A, m * m);
  place(room.W_B, m * m);
  place(room.W_M, m * m);
  place(room.tile, room.tile_size * a.threads);
  place(room.grams, kParts * m * m);
  place(room.sums, kParts * (3 * r + 2));
  place(room.small, 6 * m * m);
  place(room.least, 1);
  place(room.again, 1);
  return bytes;
}

}  // namespace lip_fast::cpu
