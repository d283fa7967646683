#include "cpu/small_svd.h"

#include <vector>

#include "core/team.h"

namespace lip_fast::cpu {
namespace {

template <class T>
void all(const SmallSvd<T>& first, std::int64_t batch, T* shared) {
  SerialTeam team;
  for (std::int64_t n = 0; n < batch; ++n) {
    SmallSvd<T> a = nth(first, n);
    a.spacious = true;
    small_svd_block(team, a, shared);
  }
}

LIP_FAST_MULTIVERSION void run(const SmallSvd<float>& first, std::int64_t batch, float* shared) {
  all(first, batch, shared);
}
LIP_FAST_MULTIVERSION void run(const SmallSvd<double>& first, std::int64_t batch, double* shared) {
  all(first, batch, shared);
}

}  // namespace

void small_svd(const SmallSvd<float>& first, std::int64_t batch) {
  std::vector<float> shared(static_cast<std::size_t>(small_svd_shared(first.m, true)));
  run(first, batch, shared.data());
}

void small_svd(const SmallSvd<double>& first, std::int64_t batch) {
  std::vector<double> shared(static_cast<std::size_t>(small_svd_shared(first.m, true)));
  run(first, batch, shared.data());
}

}  // namespace lip_fast::cpu
