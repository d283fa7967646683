// How a truncated step is divided, and where it keeps what it makes.
#pragma once

#include "cpu/room.h"
#include "cpu/truncated_step.h"

namespace lip_fast::cpu {

// Columns of M at a time in M V, so that these rows of V are in the first cache.
constexpr int kDepth = 128;
// Columns of M at a time in M^T Q: 16 blocks of registers.
constexpr int kSlice = 96;
// Columns of M at a time in the rebuild, and rows of Z and B: four vectors.
constexpr int kPanel = 64;
// Bytes of M beyond which what is read next is fetched ahead: below, it costs more than it gains.
constexpr std::int64_t kFar = 16 << 20;
/// Where a step keeps what it makes. ``m`` below is the number of columns, padded.
struct TruncatedRoom {
  int m;
  Parts tiles, slabs, of_Y, of_Z, of_batch;
  float *V, *F, *Y, *Z, *panels, *C, *W_A, *W_B, *W_M;  // (q, m), (q, 16), (l, m), (q, m), ..., (m, 16), (m, m) each
  float* tile;                                          // of each thread
  double *grams, *sums, *small, *least;                 // of each part; (6, m, m); ()
  bool* again;          // whether a stage is to be taken once more
  std::int64_t tile_size;
  bool fetches;  // whether M is read from farther than the caches of a core
};

/// Lays the room out from an address, or counts its bytes where that is null.
inline std::int64_t lay_out(TruncatedRoom& room, const TruncatedStep& a, char* at) {
  const std::int64_t m = padded(a.t + a.fresh), r = a.t - a.k;
  room.m = static_cast<int>(m);
  room.fetches = a.l * a.q * 4 > kFar;
  room.tiles = tiles_of(a.l);
  room.slabs = {a.q, kPanel};
  room.of_Y = parts_of_sum(a.l);
  room.of_Z = parts_of_sum(a.q);
  room.of_batch = parts_of_sum(a.batch.n);
  room.tile_size = std::max<std::int64_t>({kTile * (kSlice + 16), room_of_sums(m) + m, 2 * kTile * m, m * m, room_of_eigenvectors(m), kTile * (kPanel + m), kPanel * m});
  Places place(at);
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
  place(room.sums, kParts * count_of_sums(r));
  place(room.small, 6 * m * m);
  place(room.least, 1);
  place(room.again, 1);
  return place.bytes();
}

}  // namespace lip_fast::cpu
