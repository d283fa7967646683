#include "cpu/sets.h"

#if defined(LIP_FAST_X86_SETS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#include "cpu/truncated_stages.h"

namespace lip_fast::cpu {
namespace {

void run(TruncatedStep& step, const TruncatedRoom& room, const Crew& crew) { TruncatedStages<8>(step, room, crew).run(); }

}  // namespace
}  // namespace lip_fast::cpu
#pragma GCC pop_options

namespace lip_fast::cpu {

Run<TruncatedStep, TruncatedRoom> truncated_of_32_bytes() { return __builtin_cpu_supports("x86-64-v3") ? run : nullptr; }

}  // namespace lip_fast::cpu
#else
lip_fast::cpu::Run<lip_fast::cpu::TruncatedStep, lip_fast::cpu::TruncatedRoom> lip_fast::cpu::truncated_of_32_bytes() { return nullptr; }
#endif
