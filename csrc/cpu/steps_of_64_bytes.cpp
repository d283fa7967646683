#include "cpu/sets.h"

#if defined(LIP_FAST_X86_SETS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#include "cpu/all_stages.h"

namespace lip_fast::cpu {
namespace {

constexpr Steps steps = steps_of<16>;

}  // namespace
}  // namespace lip_fast::cpu
#pragma GCC pop_options

namespace lip_fast::cpu {

const Steps* steps_of_64_bytes() { return __builtin_cpu_supports("x86-64-v4") ? &steps : nullptr; }

}  // namespace lip_fast::cpu
#else
const lip_fast::cpu::Steps* lip_fast::cpu::steps_of_64_bytes() { return nullptr; }
#endif
