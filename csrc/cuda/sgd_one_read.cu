#include "cuda/one_read_update.cuh"

namespace lip_fast {
LIP_FAST_UPDATE_ON_ONE_READ(SGDUpdate<true>)
LIP_FAST_UPDATE_ON_ONE_READ(SGDUpdate<false>)
}  // namespace lip_fast
