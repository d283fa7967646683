#include "cpu/sets.h"
#include "cpu/projected_stages.h"

namespace lip_fast::cpu {
namespace {

void run(ProjectedStep& step, const ProjectedRoom& room, const Crew& crew) { ProjectedStages<4>(step, room, crew).run(); }

}  // namespace

Run<ProjectedStep, ProjectedRoom> projected_of_16_bytes() { return run; }

}  // namespace lip_fast::cpu
