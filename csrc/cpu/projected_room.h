// How a step by products is divided, and where it keeps what it makes.
#pragma once

#include "cpu/projected_step.h"
#include "cpu/room.h"

namespace lip_fast::cpu {

// Rows and columns of a block of a triangular matrix; rows of a block of the first cache.
constexpr int kEdge = 64;
// Rows of an operand of a large product that a core takes at a time, and its columns: see cpu/large_product.h.
constexpr int kTall = 96, kDeep = 384;
// What is copied of it, and a vector more.
constexpr int kOfA = kTall * kDeep + 16;
// Columns of the other operand at a time, so that what is copied of it does not grow with the matrix.
constexpr int kWide = 4096;
// Columns of the fresh signs, padded.
constexpr int kSigns = 16;

/// Where blocks of both operands of a large product are copied to.
struct ProductRoom {
  float *of_A, *of_B;  // kOfA values for each thread; (kDeep, columns) for all of them
};

/// n: kept directions without the guards. t: columns of T. m: those below the kept ones. Each padded where ``p`` follows.
struct ProjectedRoom {
  int n, np, t, tp, m, mp;
  std::int64_t yp, qp, both;  // padded columns of Y, of Q and T, and of both tails: tp + mp
  Parts rows, features, of_rows, of_features, of_kept, of_batch;
  float *F, *Y, *G, *inverse, *corner, *lengths;  // (q, signs), (l, yp), (np, np) twice, (edge, edge), (np)
  float *Q, *T;                       // (l, qp), the columns of Q and, from n on, those of T
  float *beside, *along;              // (l, tp), (n, tp): products of T with Q
  float *Z, *image;                   // (n + t, q) of M^T Q and M^T T, and again the latter, (q, tp)
  float *left, *right;                // (l, both), (q, both): A and the rotated tail's, C and B of the rotated tail
  float *E, *X, *moved;               // (n, mp) twice, (max(l, q), mp)
  float *P, *N, *N_unit;              // (tp, tp), (mp, mp) twice
  float* tile;                        // of each thread
  std::int64_t tile_size;
  double *grams, *small, *squares;    // of each part; (6, tp, tp); of each part, of n columns or t and two more
  double *of_S, *of_tail, *sums;      // (tp) of C, (mp) of the rotated tail; of each part of the batch
  double *energy, *kept_energy;       // of each part of M; of Z
  float* least;
  ProductRoom product;
};

/// Lays the room out from an address, or counts its bytes where that is null.
inline std::int64_t lay_out(ProjectedRoom& room, const ProjectedStep& a, char* at) {
  room.n = a.k - a.guards, room.np = static_cast<int>(rounded_up(room.n, kEdge));
  room.t = a.guards + a.r + a.fresh, room.tp = padded(room.t);
  room.m = a.r + a.fresh, room.mp = padded(room.m);
  room.yp = padded(a.k + a.r), room.qp = padded(room.n + room.tp), room.both = room.tp + room.mp;
  room.rows = tiles_of(a.l), room.features = tiles_of(a.q);
  room.of_rows = parts_of_sum(a.l), room.of_features = parts_of_sum(a.q), room.of_kept = parts_of_sum(room.n);
  room.of_batch = parts_of_sum(a.batch.n);
  const std::int64_t n = room.n, np = room.np, tp = room.tp, mp = room.mp, l = a.l, q = a.q;
  room.tile_size = std::max<std::int64_t>({kEdge * kEdge, room_of_sums(mp), 4 * kTile * tp, room_of_eigenvectors(tp), tp * tp,
                                           kTile * kFeatures + kTile * kSigns});
  Places place(at);
  place(room.F, q * kSigns);
  place(room.Y, l * room.yp);
  const auto here = [&](float*& pointer, float* given, std::int64_t count) {
    pointer = given;
    if (given == nullptr) place(pointer, count);
  };
  here(room.Q, a.factors.Q, l * room.qp);
  room.T = room.Q + n;
  place(room.G, np * np);
  place(room.inverse, np * np);
  place(room.corner, kEdge * kEdge);
  place(room.lengths, np);
  place(room.beside, l * tp);
  place(room.along, n * tp);
  here(room.Z, a.factors.Z, (n + room.t) * q);
  place(room.image, q * tp);
  here(room.left, a.factors.left, l * room.both);
  here(room.right, a.factors.right, q * room.both);
  place(room.E, n * mp);
  place(room.X, n * mp);
  place(room.moved, std::max(l, q) * mp);
  place(room.P, tp * tp);
  place(room.N, mp * mp);
  place(room.N_unit, mp * mp);
  place(room.tile, room.tile_size * a.threads);
  place(room.grams, kParts * tp * tp);
  place(room.small, 6 * tp * tp);
  place(room.squares, kParts * (std::max<std::int64_t>(np, tp) + 2));
  place(room.of_S, tp);
  place(room.of_tail, mp);
  place(room.sums, kParts * count_of_sums(a.r));
  place(room.energy, room.rows.count());
  place(room.kept_energy, 1);
  place(room.least, 1);
  place(room.product.of_A, std::int64_t{a.threads} * kOfA);
  place(room.product.of_B, kDeep * (std::min<std::int64_t>(std::max(q, room.yp), kWide) + kEdge));
  return place.bytes();
}

}  // namespace lip_fast::cpu
