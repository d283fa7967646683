#include "cpu/sets.h"
#include "cpu/truncated_stages.h"

namespace lip_fast::cpu {
namespace {

void run(TruncatedStep& step, const TruncatedRoom& room, const Crew& crew) { TruncatedStages<4>(step, room, crew).run(); }

}  // namespace

Run<TruncatedStep, TruncatedRoom> truncated_of_16_bytes() { return run; }

}  // namespace lip_fast::cpu
