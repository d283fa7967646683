// A truncated step compiled for several instruction sets, of which the processor says at run time what it has, and all
// that the step needs of what is not compiled for a set.
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
#include "cpu/truncated_room.h"

namespace lip_fast::cpu {

using RunTruncated = void (*)(TruncatedStep&, const Room&, const Crew&);

/// Null where the compiler, or the processor, does not have the set.
RunTruncated truncated_of_64_bytes();
RunTruncated truncated_of_32_bytes();
RunTruncated truncated_of_16_bytes();

}  // namespace lip_fast::cpu

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIP_FAST_X86_SETS 1
#endif
