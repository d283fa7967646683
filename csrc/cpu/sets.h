// Steps that are compiled for several instruction sets, of which the processor says at run time what it has, and all
// that they need of what is not compiled for a set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/philox.h"
#include "core/refit.h"
#include "core/small_svd.h"
#include "core/status.h"
#include "core/team.h"
#include "cpu/crew.h"
#include "cpu/exact_room.h"
#include "cpu/projected_room.h"
#include "cpu/truncated_room.h"

namespace lip_fast::cpu {

/// The steps of one set.
struct Steps {
  void (*truncated)(TruncatedStep&, const TruncatedRoom&, const Crew&);
  void (*projected)(ProjectedStep&, const ProjectedRoom&, const Crew&);
  void (*exact)(ExactStep&, const ExactRoom&, const Crew&);
};

/// Null where the compiler, or the processor, does not have vectors of so many bytes.
const Steps* steps_of_64_bytes();
const Steps* steps_of_32_bytes();
const Steps* steps_of_16_bytes();

}  // namespace lip_fast::cpu

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIP_FAST_X86_SETS 1
#endif
