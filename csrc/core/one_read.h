// Y = M V and Z = M^T Y from one read of M (l, q): a row tile stays on chip for both products.
//
// M is spread over the shared memory of a cluster: each of its blocks owns a slice of kSlice columns of M, and the
// rows of V and Z that belong to them. A block's product of its slices of M and V is a part of Y; the parts are sent
// to the block that sums these rows, which sends the sums to all. Then each block adds to its slice of Z, which stays
// in registers until the last tile.
//
// Half of a block's warps compute parts of Y (project), their slice of V in registers; the other half Z (accumulate).
//
//   projectors, step t                             accumulators, step t
//   the product of tile t, rows 0 .. 15            wait for the sums of tile t
//   wait for the parts of tile t - 1, sum, send    write their share of them to memory
//   wait for the accumulators' step t - 2          Z += M^T Y with tile t
//   send the parts of tile t
//   the same for its other rows
//
// What is sent carries its own signal: the receiver waits for all bytes of a tile. There are two buffers for parts and
// two for sums, and nothing else keeps a block from sending too early, for these reasons:
//   - Parts of tile t replace those of t - 2. They leave after the sender's accumulators are done with the sums of
//     t - 2, which came from every block after it had read its parts of t - 2.
//   - Sums of tile t replace those of t - 2. They leave when parts of t have come from every block, which each sent
//     after its accumulators were done with the sums of t - 2.
// Of M, the tiles t - 2 .. t are in use, and the others are on their way.
//
// Products are of numbers rounded to tf32, to nearest, ties away; sums are float32. The sums of Y are rounded before
// they are used and written: Z is the product with the very Y that the caller sees. Every sum has a fixed order.
//
// With an update (core/weight_update.h), a tile is first brought up to date by the rule of an optimizer, and the
// products are those of the new weight. The other arrays of a tile have two places: one in use, one on its way. Every
// thread of the block updates what it has fetched itself, the accumulators two tiles ahead:
//
//   projectors, step t                             accumulators, step t
//   update their half of tile t, fetch of t + 2    update their half of tile t + 2, fetch of t + 4
//   wait for the accumulators' half of t           tell the projectors
//   ... as above, and nothing else is fetched      ... as above, then wait for each other
//
// Here five tiles of M are on chip: a tile is fetched to where tile t - 3 was, as seen from the one just updated, and
// the accumulators are done with that one.
//
// The source is a template over the block, so that it runs on a GPU and in an emulator. A block offers
//
//   thread(), cluster_rank(), cluster_size()     (cluster_size is a power of two)
//   cluster(), clusters()                        which cluster of how many
//   shared()                                     this block's shared memory
//   load4(p), load2(p), load(p)                  reads of shared memory, aligned to their size
//   store4(p, v), store2(p, v), store(p, v)      and writes
//   put4(p, v)                                   writes 16 bytes of memory that will not be read soon
//   copy_async(to, from, bytes), copy_commit(), copy_wait<N>()     as cp.async of 16 bytes: what is not read is zero
//   sync_part<Threads>(id), arrive_part<Threads>(id)               as bar.sync and bar.arrive
//   sync_cluster()                               a barrier for all threads of the cluster
//   mma(c, a0, a1, a2, a3, b0, b1)               mma.m16n8k8 of tf32
//   init_signal(s)                               by one thread of the block, before sync_cluster
//   send4(p, rank, v, s)                         writes to p and signals s, both in the block ``rank`` of the cluster
//   expect(s, bytes)                             by all projectors, after they have sent what goes with s
//   await(s, parity)                             until the bytes expected for the first time (parity 0), the second
//                                                time (1), the third time (0) ... have come
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/config.h"
#include "core/unroll.h"
#include "core/weight_update.h"

namespace lip_fast {

struct alignas(8) Pair {
  float x, y;
};
struct alignas(16) Quad {
  float x, y, z, w;
};

LIP_FAST_FN std::uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

LIP_FAST_FN float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

/// x to the nearest number with ten bits of mantissa, ties away from zero: half a unit is added, and the 13 bits below
/// are dropped by the product that takes it. What is not finite becomes NaN: the addition alone would turn some NaNs,
/// the one of CUDA among them, into a tiny number.
LIP_FAST_FN float to_tf32(float x) { return x * 0.0f + float_of(bits_of(x) + 0x1000u); }

/// The same without the bits below.
LIP_FAST_FN float exact_tf32(float x) { return float_of(bits_of(to_tf32(x)) & 0xffffe000u); }

LIP_FAST_FN Quad to_tf32(const Quad& v) { return Quad{to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)}; }

/// What the kernel is given. Matrices in memory: M (rows, columns) with ``stride`` floats from row to row, both it and
/// M a multiple of 16 bytes; V (m, columns); Y (m, rows); partials (clusters, m, columns), to be summed over clusters.
/// The tiles are those of the shape, ceil(rows / Shape::kRows).
struct OneRead {
  const float* M;
  std::int64_t rows;
  std::int64_t stride;
  int columns;
  const float* V;
  int m;
  float* Y;
  float* partials;
  int tiles;
};

/// Columns of M that a block owns.
constexpr int kSlice = 256;
/// Threads that project, and as many that accumulate.
constexpr int kRoleThreads = 256;
constexpr int kOneReadThreads = 2 * kRoleThreads;
/// Projectors form 2 x kParts: each warp takes half of the directions and a part of the slice's columns.
constexpr int kParts = 4;
/// Pairs of products, of 8 columns each, in such a part.
constexpr int kDepth = kSlice / kParts / 16;
/// Rows of a product of the projectors, which go through their buffer at a time.
constexpr int kStep = 16;
constexpr int kMaxCluster = 16;
constexpr int kMaxDirections = 128;
/// Room for the scalars of an update.
constexpr int kMaxScalars = 8;

using Signal = std::uint64_t;

/// Directions, rows of a tile, and tiles of M on chip: three in use, and more to hide the latency of memory. Held are
/// the arrays beside M that an update needs, of which two tiles are on chip.
template <int Width, int Rows, int Stages, int Held = 0>
struct OneReadShape {
  static_assert(Width % kMaxCluster == 0 && Rows % kStep == 0 && Rows % kMaxCluster == 0 && Stages >= 4);
  static_assert(Held == 0 || (Rows == kStep && Stages == 5), "the order of an update's tiles is written for these");
  static constexpr int kWidth = Width, kRows = Rows, kStages = Stages;
  /// Rows of Y in shared memory: with this padding, reads and writes of fragments meet 32 distinct banks.
  static constexpr int kPitch = Width + 8;
  /// Of 8 rows of the accumulators' products: as many as there are registers for.
  static constexpr int kUnroll = Width > 64 ? 1 : 4;
  // Offsets in floats.
  static constexpr int kTile = Rows * kSlice;
  static constexpr int kReceived = Rows * Width;
  static constexpr int kSums = Rows * kPitch;
  static constexpr int kBufferAt = Stages * kTile;
  static constexpr int kReceivedAt = kBufferAt + kParts * kStep * kPitch;
  static constexpr int kSumsAt = kReceivedAt + 2 * kReceived;
  /// Four signals, in the padding of a row: a few bytes more would keep 64 directions off devices with 99 kB.
  static constexpr int kSignalsAt = kBufferAt + Width;
  static constexpr int kHeldAt = kSumsAt + 2 * kSums;
  static constexpr int kScalarsAt = kHeldAt + 2 * Held * kTile;
  static constexpr std::size_t kBytes = sizeof(float) * (kScalarsAt + (Held > 0 ? kMaxScalars : 0));
  /// What comes with a signal.
  static constexpr int kSent = static_cast<int>(sizeof(float)) * kReceived;

  template <class Block>
  static LIP_FAST_FN float* tile(Block& block, int index) {
    return block.shared() + static_cast<unsigned>(index) % Stages * kTile;
  }
  template <class Block>
  static LIP_FAST_FN float* buffer(Block& block) {
    return block.shared() + kBufferAt;
  }
  /// [source][row / cluster][direction]
  template <class Block>
  static LIP_FAST_FN float* received(Block& block, int index) {
    return block.shared() + kReceivedAt + (index & 1) * kReceived;
  }
  template <class Block>
  static LIP_FAST_FN float* sums(Block& block, int index) {
    return block.shared() + kSumsAt + (index & 1) * kSums;
  }
  /// Array ``k`` of a tile: what a thread has fetched, in its own order.
  template <class Block>
  static LIP_FAST_FN float* held(Block& block, int index, int k) {
    return block.shared() + kHeldAt + ((index & 1) * Held + k) * kTile;
  }
  template <class Block>
  static LIP_FAST_FN float* scalars(Block& block) {
    return block.shared() + kScalarsAt;
  }
  template <class Block>
  static LIP_FAST_FN Signal* parts_signal(Block& block, int index) {
    return reinterpret_cast<Signal*>(block.shared() + kSignalsAt) + (index & 1);
  }
  template <class Block>
  static LIP_FAST_FN Signal* sums_signal(Block& block, int index) {
    return parts_signal(block, index) + 2;
  }
};

/// Where column ``column`` of a row is kept in the tile. A projecting warp reads 8 rows x 4 x 16 bytes at
/// once, and an accumulating one 4 rows x 8 x 16 bytes: both ways, each quarter of a warp meets all banks once.
LIP_FAST_FN int swizzled(int row, int column) { return column ^ (((row & 1) << 4) | ((row & 2) << 2)); }

LIP_FAST_FN int least(int a, int b) { return a < b ? a : b; }

LIP_FAST_FN int log2_of(int power) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(power);
#else
  int shift = 0;
  while (1 << shift < power) ++shift;
  return shift;
#endif
}

/// Whether this cluster has a tile ``index``: its own are its number plus the multiples of the number of clusters.
/// It is found anew each time, as is the place of a thread: registers are for the fragments.
template <class Block>
LIP_FAST_FN bool has_tile(Block& block, const OneRead& a, int index) {
  return block.cluster() + index * block.clusters() < a.tiles;
}

template <class Shape, class Block>
LIP_FAST_FN std::int64_t first_row(Block& block, int index) {
  return (block.cluster() + static_cast<std::int64_t>(index) * block.clusters()) * Shape::kRows;
}

/// Starts to read a tile; all projectors take part.
template <class Shape, class Block>
LIP_FAST_FN void fetch(Block& block, const OneRead& a, int index) {
  constexpr int kChunks = kSlice / 4, kRowsAtOnce = kRoleThreads / kChunks;
  static_assert(kRowsAtOnce == 4, "the swizzle of a thread's column is the same in all its rows");
  const int thread = block.thread(), top = thread / kChunks, chunk = thread % kChunks;
  const int column = block.cluster_rank() * kSlice + 4 * chunk;
  const int left = 4 * (a.columns - column);
  const int bytes = left < 0 ? 0 : left > 16 ? 16 : left;
  const std::int64_t first = first_row<Shape>(block, index) + top;
  const int rows = a.rows - first < Shape::kRows ? static_cast<int>(a.rows - first) : Shape::kRows;
  const float* from = bytes > 0 ? a.M + first * a.stride + column : a.M;
  float* to = Shape::tile(block, index) + top * kSlice + swizzled(top, 4 * chunk);
  LIP_FAST_UNROLL_BY(2)
  for (int row = 0; row < Shape::kRows; row += kRowsAtOnce) {
    const bool there = row < rows;
    block.copy_async(to, there ? from : a.M, there ? bytes : 0);
    from += kRowsAtOnce * a.stride;
    to += kRowsAtOnce * kSlice;
  }
}

/// Part of Y for the 16 rows at ``rows`` of a tile, from this warp's columns, into the buffer.
///
/// The labels of the inner dimension are free: of 16 columns, a thread holds 4 t .. 4 t + 3, which serve as t and t + 4
/// of two products.
template <class Shape, class Block, int Panels>
LIP_FAST_FN void multiply(Block& block, const float* rows, float* buffer, const float (&v)[Panels][kDepth][4]) {
  const int thread = block.thread(), g = thread % 32 / 4, t = thread % 4;
  const int half = thread / 32 % 2, part = thread / 64;
  float c[Panels][4];
  LIP_FAST_UNROLL
  for (int n = 0; n < Panels; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
  // The swizzle exchanges halves of 32 columns.
  const float* const even = rows + g * kSlice + swizzled(g, part * (kSlice / kParts) + 4 * t);
  const float* const odd = rows + g * kSlice + swizzled(g, part * (kSlice / kParts) + 4 * t + 16);
  LIP_FAST_UNROLL
  for (int k = 0; k < kDepth; ++k) {
    const float* const from = (k % 2 == 0 ? even : odd) + k / 2 * 32;
    const Quad a = to_tf32(block.load4(from)), b = to_tf32(block.load4(from + 8 * kSlice));
    LIP_FAST_UNROLL
    for (int n = 0; n < Panels; ++n) block.mma(c[n], a.x, b.x, a.y, b.y, v[n][k][0], v[n][k][1]);
    LIP_FAST_UNROLL
    for (int n = 0; n < Panels; ++n) block.mma(c[n], a.z, b.z, a.w, b.w, v[n][k][2], v[n][k][3]);
  }
  float* const to = buffer + (part * kStep + g) * Shape::kPitch + half * (Shape::kWidth / 2) + 2 * t;
  LIP_FAST_UNROLL
  for (int n = 0; n < Panels; ++n) {
    block.store2(to + 8 * n, Pair{c[n][0], c[n][1]});
    block.store2(to + 8 * n + 8 * Shape::kPitch, Pair{c[n][2], c[n][3]});
  }
}

LIP_FAST_FN Quad sum(const Quad& a, const Quad& b) { return Quad{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

/// Sends the rows in the buffer, summed over the warps, to the blocks that own them: row i is owned by i % cluster.
template <class Shape, class Block>
LIP_FAST_FN void send_parts(Block& block, int index, int first) {
  constexpr int kQuads = Shape::kWidth / 4;
  const int cluster = block.cluster_size(), shift = log2_of(cluster);
  const int owned = Shape::kRows >> shift;
  float* const received = Shape::received(block, index) + block.cluster_rank() * owned * Shape::kWidth;
  LIP_FAST_UNROLL_BY(1)
  for (int i = block.thread(); i < kStep * kQuads; i += kRoleThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    const float* const from = Shape::buffer(block) + row * Shape::kPitch + column;
    Quad total = block.load4(from);
    LIP_FAST_UNROLL
    for (int part = 1; part < kParts; ++part) total = sum(total, block.load4(from + part * kStep * Shape::kPitch));
    float* const to = received + ((first + row) >> shift) * Shape::kWidth + column;
    block.send4(to, (first + row) & (cluster - 1), total, Shape::parts_signal(block, index));
  }
}

/// Sums the received rows over the blocks they came from, rounds them, and sends them to all.
template <class Shape, class Block>
LIP_FAST_FN void send_sums(Block& block, int index) {
  constexpr int kQuads = Shape::kWidth / 4;
  const int cluster = block.cluster_size(), rank = block.cluster_rank(), shift = log2_of(cluster);
  const int owned = Shape::kRows >> shift;
  LIP_FAST_UNROLL_BY(1)
  for (int i = block.thread(); i < owned * kQuads; i += kRoleThreads) {
    const float* from = Shape::received(block, index) + 4 * i;
    Quad total = block.load4(from);
    LIP_FAST_UNROLL_BY(4)
    for (int source = 1; source < cluster; ++source) {
      from += owned * Shape::kWidth;
      total = sum(total, block.load4(from));
    }
    total = Quad{exact_tf32(total.x), exact_tf32(total.y), exact_tf32(total.z), exact_tf32(total.w)};
    float* const to = Shape::sums(block, index) + ((i / kQuads << shift) + rank) * Shape::kPitch + i % kQuads * 4;
    LIP_FAST_UNROLL_BY(2)
    for (int k = 0; k < cluster; ++k) {
      // Not all of them to the same block at the same time.
      block.send4(to, (rank + k) & (cluster - 1), total, Shape::sums_signal(block, index));
    }
  }
}

/// What each block does between the parts of a tile and its sums.
template <class Shape, class Block>
LIP_FAST_FN void exchange(Block& block, int index) {
  block.await(Shape::parts_signal(block, index), index >> 1 & 1);
  send_sums<Shape>(block, index);
  block.expect(Shape::sums_signal(block, index), Shape::kSent);
}

/// Barriers of a block: among the projectors, among the accumulators, and where the accumulators tell the projectors
/// that a tile is done with (two in turn), or is up to date (three in turn: they are two tiles ahead).
constexpr int kProjectorsBarrier = 1, kDoneBarrier = 2, kAccumulatorsBarrier = 4, kUpdatedBarrier = 5;

/// Threads across a row of a tile where each of the block's has a share of it, and the rows between two of its quads.
constexpr int kShareChunks = kSlice / 4, kShareRows = kOneReadThreads / kShareChunks;
static_assert(kShareRows % 4 == 0, "the swizzle of a thread's column is the same in all its rows");

/// A thread's share of a tile of M and of what an update needs beside it. Only the thread itself waits for its copies.
struct Share {
  int top, chunk, left;  // left: columns of its quads that there are, 0 .. 4
  int rows;              // of the tile
  std::int64_t offset;   // of its first quad, in memory
};

template <class Shape, class Block>
LIP_FAST_FN Share share_of(Block& block, const OneRead& a, int index) {
  const int thread = block.thread(), top = thread / kShareChunks, chunk = thread % kShareChunks;
  const int column = block.cluster_rank() * kSlice + 4 * chunk, left = a.columns - column;
  const std::int64_t first = first_row<Shape>(block, index);
  const int rows = a.rows - first < Shape::kRows ? static_cast<int>(a.rows - first) : Shape::kRows;
  return Share{top, chunk, left < 0 ? 0 : least(left, 4), rows, (first + top) * a.stride + column};
}

template <class Shape, class Block, class Update>
LIP_FAST_FN void fetch_share(Block& block, const OneRead& a, const Update& update, int index) {
  if (has_tile(block, a, index)) {
    const Share share = share_of<Shape>(block, a, index);
    const int column = swizzled(share.top, 4 * share.chunk);
    std::int64_t offset = share.offset;
    LIP_FAST_UNROLL_BY(1)
    for (int row = share.top; row < Shape::kRows; row += kShareRows) {
      const int bytes = row < share.rows ? 4 * share.left : 0;
      const std::int64_t from = bytes > 0 ? offset : 0;
      block.copy_async(Shape::tile(block, index) + row * kSlice + column, a.M + from, bytes);
      LIP_FAST_UNROLL
      for (int k = 0; k < Update::kHeld; ++k) {
        float* const to = Shape::held(block, index, k) + row * kSlice + 4 * share.chunk;
        block.copy_async(to, update.held[k] + from, update.reads(k) ? bytes : 0);
      }
      offset += kShareRows * a.stride;
    }
  }
  block.copy_commit();
}

/// What each thread fetches before its first update.
template <class Shape, class Block, class Update>
LIP_FAST_FN void fetch_first(Block& block, const OneRead& a, const Update& update) {
  LIP_FAST_UNROLL_BY(1)
  for (int i = 0; i < 2; ++i) fetch_share<Shape>(block, a, update, i);
}

/// Four entries of a row as an update sees them. Array by array, they are taken when they are needed and put when they
/// are done: there are not the registers for all at once.
template <class Shape, class Block>
struct Entries {
  Block& block;
  int index;
  int at;    // place in the tiles of the arrays
  int left;  // how many of the four there are
  std::int64_t offset;

  LIP_FAST_FN void take(const float* from, float (&v)[4]) const {
    const Quad quad = block.load4(from);
    v[0] = quad.x, v[1] = quad.y, v[2] = quad.z, v[3] = quad.w;
  }
  LIP_FAST_FN void take(int k, float (&v)[4]) const { take(Shape::held(block, index, k) + at, v); }
  LIP_FAST_FN void put(float* array, const float (&v)[4]) const {
    float* const to = array + offset;
    if (left == 4) {
      block.put4(to, Quad{v[0], v[1], v[2], v[3]});
      return;
    }
    LIP_FAST_UNROLL
    for (int e = 0; e < 3; ++e) {
      if (e < left) to[e] = v[e];
    }
  }
  LIP_FAST_FN float scalar(int i) const { return block.load(Shape::scalars(block) + i); }
};

/// Brings this thread's share of a tile up to date, on chip and in memory, and starts to read the one after the next.
template <class Shape, class Block, class Update>
LIP_FAST_FN void refresh(Block& block, const OneRead& a, const Update& update, int index) {
  block.template copy_wait<1>();
  const Share share = share_of<Shape>(block, a, index);
  const bool applied = block.load(Shape::scalars(block) + kApplied) != 0.0f;
  std::int64_t offset = share.offset;
  LIP_FAST_UNROLL_BY(1)
  for (int row = share.top; row < share.rows && share.left > 0 && applied; row += kShareRows) {
    const Entries<Shape, Block> entries{block, index, row * kSlice + 4 * share.chunk, share.left, offset};
    float* const tile = Shape::tile(block, index) + row * kSlice + swizzled(share.top, 4 * share.chunk);
    float w[4];
    update.update(entries, [&](float (&v)[4]) { entries.take(tile, v); }, w);
    // A column beyond the last is to be 0, and may have become 0 / 0.
    LIP_FAST_UNROLL
    for (int e = 1; e < 4; ++e) {
      if (e >= share.left) w[e] = 0.0f;
    }
    block.store4(tile, Quad{w[0], w[1], w[2], w[3]});
    if (update.write) entries.put(update.M, w);
    offset += kShareRows * a.stride;
  }
  fetch_share<Shape>(block, a, update, index + 2);
}

/// Y = M V, tile by tile.
template <class Shape, class Block, class Update>
LIP_FAST_FN void project(Block& block, const OneRead& a, const Update& update) {
  constexpr int kPanels = Shape::kWidth / 16;  // of 8 directions, in one half
  constexpr bool kUpdates = Update::kHeld > 0;
  if constexpr (kUpdates) {
    fetch_first<Shape>(block, a, update);
  } else {
    LIP_FAST_UNROLL_BY(1)
    for (int i = 0; i < Shape::kStages; ++i) {
      if (has_tile(block, a, i)) fetch<Shape>(block, a, i);
      block.copy_commit();
    }
  }
  float v[kPanels][kDepth][4];
  {
    const int thread = block.thread(), g = thread % 32 / 4, t = thread % 4;
    const int half = thread / 32 % 2, part = thread / 64;
    const int first = block.cluster_rank() * kSlice + part * (kSlice / kParts) + 4 * t;
    // The last direction and column stand in for those beyond: what comes of a direction beyond is not written, and a
    // column beyond is multiplied by a zero of the tile.
    LIP_FAST_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      LIP_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = least(first + 16 * k + e, a.columns - 1);
        LIP_FAST_UNROLL
        for (int n = 0; n < kPanels; ++n) {
          const int j = least(half * (Shape::kWidth / 2) + 8 * n + g, a.m - 1);
          v[n][k][e] = to_tf32(a.V[j * a.columns + column]);
        }
      }
    }
  }
  // One counter for both loops, over tiles and over the steps of a tile, spares a register.
  constexpr int kSteps = Shape::kRows / kStep;
  LIP_FAST_UNROLL_BY(1)
  for (int step = 0; has_tile(block, a, step / kSteps); ++step) {
    const int index = step / kSteps, first = step % kSteps * kStep;
    // The tiles fetched so far are 0 .. kStages - 1 and, from tile 2 on, one more a tile: all but the kStages - 3
    // behind this one must be here, fewer at first.
    if constexpr (kUpdates) {
      refresh<Shape>(block, a, update, index);
      block.template sync_part<kOneReadThreads>(kUpdatedBarrier + index % 3);
    } else {
      if (first == 0) block.template copy_wait<Shape::kStages - 3>();
      // Every thread's copies are here, and what was in the buffer has been sent.
      block.template sync_part<kRoleThreads>(kProjectorsBarrier);
    }
    multiply<Shape>(block, Shape::tile(block, index) + first * kSlice, Shape::buffer(block), v);
    if (first == 0) {
      if (index >= 1) exchange<Shape>(block, index - 1);
      if (index >= 2) {
        block.template sync_part<kOneReadThreads>(kDoneBarrier + (index & 1));
        if constexpr (!kUpdates) {
          if (has_tile(block, a, index - 2 + Shape::kStages)) fetch<Shape>(block, a, index - 2 + Shape::kStages);
          block.copy_commit();
        }
      }
    }
    block.template sync_part<kRoleThreads>(kProjectorsBarrier);
    send_parts<Shape>(block, index, first);
    if (first + kStep == Shape::kRows) {
      block.expect(Shape::parts_signal(block, index), Shape::kSent);
      if (!has_tile(block, a, index + 1)) exchange<Shape>(block, index);
    }
  }
}

/// Writes this block's share of a tile of Y to memory.
template <class Shape, class Block>
LIP_FAST_FN void write_sums(Block& block, const OneRead& a, int index) {
  const std::int64_t first = first_row<Shape>(block, index);
  const int shift = log2_of(block.cluster_size()), share = Shape::kWidth >> shift;
  const int rows = a.rows - first < Shape::kRows ? static_cast<int>(a.rows - first) : Shape::kRows;
  const float* const sums = Shape::sums(block, index);
  // 8 rows fill a sector of memory.
  LIP_FAST_UNROLL_BY(1)
  for (int i = block.thread() % kRoleThreads; i < Shape::kRows * share; i += kRoleThreads) {
    const int row = i / 8 / share * 8 + i % 8, j = block.cluster_rank() * share + i / 8 % share;
    if (j < a.m && row < rows) a.Y[j * a.rows + first + row] = block.load(sums + row * Shape::kPitch + j);
  }
}

/// Z = M^T Y over the tiles of this cluster.
///
/// Labels are free here as well: of 32 columns of M, a thread holds 4 g .. 4 g + 3, which are column g of four
/// products, and of 16 directions 2 g and 2 g + 1, which are rows g and g + 8.
template <class Shape, class Block, class Update>
LIP_FAST_FN void accumulate(Block& block, const OneRead& a, const Update& update) {
  constexpr int kPanels = Shape::kWidth / 16;
  float c[kPanels][4][4];
  LIP_FAST_UNROLL
  for (int n = 0; n < kPanels; ++n) {
    LIP_FAST_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i][0] = c[n][i][1] = c[n][i][2] = c[n][i][3] = 0.0f;
  }
  // The updates of tiles 0 and 1 come before the first step.
  constexpr int kAhead = Update::kHeld > 0 ? 2 : 0;
  if constexpr (kAhead > 0) fetch_first<Shape>(block, a, update);
  LIP_FAST_UNROLL_BY(1)
  for (int step = -kAhead; (kAhead > 0 && step < 0) || has_tile(block, a, step); ++step) {
    if constexpr (kAhead > 0) {
      if (has_tile(block, a, step + kAhead)) {
        refresh<Shape>(block, a, update, step + kAhead);
        block.template arrive_part<kOneReadThreads>(kUpdatedBarrier + (step + kAhead) % 3);
      }
      if (step < 0) continue;
    }
    block.await(Shape::sums_signal(block, step), step >> 1 & 1);
    write_sums<Shape>(block, a, step);
    const int thread = block.thread() % kRoleThreads, warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    const float* const tile = Shape::tile(block, step) + t * kSlice + swizzled(t, 32 * warp + 4 * g);
    const float* const sums = Shape::sums(block, step) + t * Shape::kPitch + 2 * g;
    LIP_FAST_UNROLL_BY(Shape::kUnroll)
    for (int k = 0; k < Shape::kRows; k += 8) {
      const float* const from = tile + k * kSlice;
      const Quad b = to_tf32(block.load4(from)), d = to_tf32(block.load4(from + 4 * kSlice));
      LIP_FAST_UNROLL
      for (int n = 0; n < kPanels; ++n) {
        const float* const y = sums + k * Shape::kPitch + 16 * n;
        const Pair u = block.load2(y), w = block.load2(y + 4 * Shape::kPitch);
        block.mma(c[n][0], u.x, u.y, w.x, w.y, b.x, d.x);
        block.mma(c[n][1], u.x, u.y, w.x, w.y, b.y, d.y);
        block.mma(c[n][2], u.x, u.y, w.x, w.y, b.z, d.z);
        block.mma(c[n][3], u.x, u.y, w.x, w.y, b.w, d.w);
      }
    }
    // Step + 2 of the projectors waits for it, where there is one.
    if (has_tile(block, a, step + 2)) block.template arrive_part<kOneReadThreads>(kDoneBarrier + (step & 1));
    // The next update fetches to where this tile is.
    if constexpr (kAhead > 0) block.template sync_part<kRoleThreads>(kAccumulatorsBarrier);
  }
  // Columns 2 t and 2 t + 1 of product i are columns 8 t + i and 8 t + 4 + i of the 32.
  const int thread = block.thread() % kRoleThreads, warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  const int column = block.cluster_rank() * kSlice + 32 * warp + 8 * t;
  float* const to = a.partials + static_cast<std::int64_t>(block.cluster()) * a.m * a.columns + column;
  LIP_FAST_UNROLL
  for (int n = 0; n < kPanels; ++n) {
    const int j = 16 * n + 2 * g;
    LIP_FAST_UNROLL
    for (int e = 0; e < 8; ++e) {
      if (column + e >= a.columns) continue;
      if (j < a.m) to[static_cast<std::int64_t>(j) * a.columns + e] = c[n][e % 4][e / 4];
      if (j + 1 < a.m) to[static_cast<std::int64_t>(j + 1) * a.columns + e] = c[n][e % 4][2 + e / 4];
    }
  }
}

/// The kernel: what a thread of kOneReadThreads does, with Shape::kBytes of shared memory, in every cluster. There are
/// no more clusters than tiles.
template <class Shape, class Block, class Update>
LIP_FAST_FN void one_read_thread(Block& block, const OneRead& a, const Update& update) {
  if (block.thread() == 0) {
    for (int i = 0; i < 2; ++i) {
      block.init_signal(Shape::parts_signal(block, i));
      block.init_signal(Shape::sums_signal(block, i));
    }
  }
  if constexpr (Update::kHeld > 0) {
    static_assert(Update::kScalars <= kMaxScalars);
    if (block.thread() < Update::kScalars) {
      block.store(Shape::scalars(block) + block.thread(), update.scalars[block.thread()]);
    }
  }
  block.sync_cluster();  // from here on blocks can send to each other
  if (block.thread() < kRoleThreads) {
    project<Shape>(block, a, update);
  } else {
    accumulate<Shape>(block, a, update);
  }
  block.sync_cluster();  // none may be gone while another could send to it
}

/// How a problem is cut: ``passes`` over M with at most ``directions`` columns of V each.
struct OneReadPlan {
  int cluster, passes, directions;
  int width, rows, stages;  // of the shape
};

constexpr int kOneReadWidths[] = {32, 48, 64, 80};

/// Rows and stages from the most to the least memory.
struct OneReadDepth {
  int rows, stages;
};
constexpr OneReadDepth kOneReadDepths[] = {{32, 5}, {16, 7}, {16, 4}};

/// Calls ``use`` with the shape of these numbers; false where there is none.
template <class Use>
bool with_one_read_shape(int width, int rows, int stages, Use&& use) {
  const auto deep = [&](auto base) {
    constexpr int kWidth = decltype(base)::kWidth;
    if (rows == 32 && stages == 5) return use(OneReadShape<kWidth, 32, 5>()), true;
    if (rows == 16 && stages == 7) return use(OneReadShape<kWidth, 16, 7>()), true;
    if (rows == 16 && stages == 4) return use(base), true;
    return false;
  };
  if (width == 32) return deep(OneReadShape<32, 16, 4>());
  if (width == 48) return deep(OneReadShape<48, 16, 4>());
  if (width == 64) return deep(OneReadShape<64, 16, 4>());
  // Fewer rows would not get 80 directions onto a device with 99 kB, and cost others registers.
  if (width == 80 && rows == 32 && stages == 5) return use(OneReadShape<80, 32, 5>()), true;
  return false;
}

/// Widths with an update, whose arrays leave room for one depth: the usual 48 and 80 directions.
constexpr int kUpdateWidths[] = {48, 80};

/// The shape of an update with ``width`` directions; false where there is none.
template <class Update, class Use>
bool with_update_shape(int width, Use&& use) {
  if (width == 48) return use(OneReadShape<48, kStep, 5, Update::kHeld>()), true;
  if (width == 80) return use(OneReadShape<80, kStep, 5, Update::kHeld>()), true;
  return false;
}

/// Blocks of a cluster that hold so many columns; 0 where there are not as many.
inline int cluster_for(std::int64_t columns, int max_cluster) {
  int cluster = 1;
  while (cluster < kMaxCluster && static_cast<std::int64_t>(cluster) * kSlice < columns) cluster *= 2;
  return cluster > max_cluster || static_cast<std::int64_t>(cluster) * kSlice < columns ? 0 : cluster;
}

/// The plan for an update and m directions, in one pass: false for more than 80, which would take a second one.
template <class Update>
bool plan_update(std::int64_t columns, int m, std::size_t shared, OneReadPlan* plan) {
  if (columns < 1 || m < 1) return false;
  const int cluster = cluster_for(columns, kMaxCluster);
  for (const int width : kUpdateWidths) {
    if (cluster == 0 || width < m) continue;
    bool fits = false;
    with_update_shape<Update>(width, [&](auto shape) {
      using Shape = decltype(shape);
      fits = Shape::kBytes <= shared;
      if (fits) *plan = OneReadPlan{cluster, 1, m, width, Shape::kRows, Shape::kStages};
    });
    return fits;
  }
  return false;
}

/// The plan for m directions where a block can have ``shared`` bytes and a cluster ``max_cluster`` blocks; false where
/// there is none. More than 80 directions need the accumulators of two passes, each of which reads M.
inline bool plan_one_read(std::int64_t columns, int m, std::size_t shared, int max_cluster, OneReadPlan* plan) {
  if (columns < 1 || m < 1 || m > kMaxDirections) return false;
  const int cluster = cluster_for(columns, max_cluster);
  if (cluster == 0) return false;
  for (int passes = 1; passes <= m; ++passes) {
    const int directions = (m + passes - 1) / passes;
    for (const int width : kOneReadWidths) {
      if (width < directions) continue;
      for (const OneReadDepth& depth : kOneReadDepths) {
        bool fits = false;
        with_one_read_shape(width, depth.rows, depth.stages,
                            [&](auto shape) { fits = decltype(shape)::kBytes <= shared; });
        if (fits) {
          *plan = OneReadPlan{cluster, passes, directions, width, depth.rows, depth.stages};
          return true;
        }
      }
      break;  // the next pass count asks for fewer directions
    }
  }
  return false;
}

}  // namespace lip_fast
