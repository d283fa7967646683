#include "cpu/sets.h"
#include "cpu/all_stages.h"

namespace lip_fast::cpu {
namespace {

constexpr Steps steps = steps_of<4>;

}  // namespace

const Steps* steps_of_16_bytes() { return &steps; }

}  // namespace lip_fast::cpu
