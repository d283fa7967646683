// Why a decomposition cannot be used: bits of its status word, 0 where it can. lip_fast/status.py names them.
#pragma once

namespace lip_fast {

enum Status : int {
  kSound = 0,
  kNotFinite = 1,
  kRankDeficient = 2,
  kNotConverged = 4,
  kNotOrthogonal = 8,
};

}  // namespace lip_fast
