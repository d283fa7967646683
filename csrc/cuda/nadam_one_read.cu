#include "cuda/one_read_update.cuh"

namespace lip_fast {
LIP_FAST_UPDATE_ON_ONE_READ(NAdamUpdate)
}  // namespace lip_fast
