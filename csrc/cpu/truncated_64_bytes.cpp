#include "cpu/truncated_sets.h"

#if defined(LIP_FAST_X86_SETS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#include "cpu/truncated_stages.h"

namespace lip_fast::cpu {
namespace {

void run(TruncatedStep& step, const Room& room, const Crew& crew) { TruncatedStages<16>(step, room, crew).run(); }

}  // namespace
}  // namespace lip_fast::cpu
#pragma GCC pop_options

namespace lip_fast::cpu {

RunTruncated truncated_of_64_bytes() { return __builtin_cpu_supports("x86-64-v4") ? run : nullptr; }

}  // namespace lip_fast::cpu
#else
lip_fast::cpu::RunTruncated lip_fast::cpu::truncated_of_64_bytes() { return nullptr; }
#endif
