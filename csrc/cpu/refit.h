#pragma once

#include "core/refit.h"

namespace lip_fast::cpu {

void refit(const Refit<float>& arguments);
void refit(const Refit<double>& arguments);

}  // namespace lip_fast::cpu
