#pragma once

#include "cpu/exact_step.h"
#include "cpu/room.h"

namespace lip_fast::cpu {

/// Where an exact step keeps what it makes: d is the small side, n the large one, t = d - k; padded where ``p`` follows.
struct ExactRoom {
  bool wide;  // l <= q
  int d, dp, t;
  std::int64_t n, np;
  double *X, *large;              // (d, np) the weight by its small side, (t, np) the tail's vectors on the large one
  double *H, *P, *work;           // (d, dp) each, four times
  float *of_small, *of_large;     // (t, dp), (t, np): the tail's vectors
  float *S, *s, *delta, *scratch;  // (d), (r), (t), of eigenvectors()
  double *sums, *offset;          // numerators, denominators and energy; (r)
};

/// Lays the room out from an address, or counts its bytes where that is null.
inline std::int64_t lay_out(ExactRoom& room, const ExactStep& a, char* at) {
  room.wide = a.l <= a.q;
  room.d = static_cast<int>(std::min(a.l, a.q)), room.dp = padded(room.d), room.t = room.d - a.k;
  room.n = std::max(a.l, a.q), room.np = padded(room.n);
  const std::int64_t d = room.d, dp = room.dp, t = room.t;
  Places place(at);
  place(room.X, d * room.np);
  place(room.large, t * room.np);
  place(room.H, d * dp);
  place(room.P, d * dp);
  place(room.work, 4 * d * dp);
  place(room.of_small, t * dp);
  place(room.of_large, t * room.np);
  place(room.S, d);
  place(room.s, a.r);
  place(room.delta, t);
  place(room.scratch, room_of_eigenvectors(d));
  place(room.sums, 2 * a.r + 1);
  place(room.offset, a.r);
  return place.bytes();
}

}  // namespace lip_fast::cpu
