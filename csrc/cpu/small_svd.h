#pragma once

#include "core/small_svd.h"

namespace lip_fast::cpu {

/// The ``batch`` matrices after the first lie one after another, as do all outputs; ``work`` is shared.
void small_svd(const SmallSvd<float>& first, std::int64_t batch);
void small_svd(const SmallSvd<double>& first, std::int64_t batch);

}  // namespace lip_fast::cpu
