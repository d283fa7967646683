#include "cpu/refit.h"

#include "core/team.h"

namespace lip_fast::cpu {

void refit(const Refit<float>& arguments) {
  SerialTeam team;
  lip_fast::refit(team, arguments);
}

void refit(const Refit<double>& arguments) {
  SerialTeam team;
  lip_fast::refit(team, arguments);
}

}  // namespace lip_fast::cpu
