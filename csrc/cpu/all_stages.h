#pragma once

#include "cpu/exact_stages.h"
#include "cpu/projected_stages.h"
#include "cpu/truncated_stages.h"

namespace lip_fast::cpu {

/// The steps with vectors of W floats.
template <int W>
constexpr Steps steps_of{
    [](TruncatedStep& step, const TruncatedRoom& room, const Crew& crew) { TruncatedStages<W>(step, room, crew).run(); },
    [](ProjectedStep& step, const ProjectedRoom& room, const Crew& crew) { ProjectedStages<W>(step, room, crew).run(); },
    [](ExactStep& step, const ExactRoom& room, const Crew& crew) { ExactStages<W>(step, room, crew).run(); },
};

}  // namespace lip_fast::cpu
