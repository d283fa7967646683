#include "cpu/exact_step.h"

#include <algorithm>
#include <vector>

#include "core/config.h"
#include "core/refit.h"
#include "core/status.h"
#include "core/team.h"
#include "cpu/label_sums.h"
#include "cpu/tail_svd.h"

namespace lip_fast::cpu {
namespace {

/// M += A diag(delta) B^T, of t columns that are contiguous.
LIP_FAST_MULTIVERSION void add(const ExactStep& a, const float* A, const float* delta, const float* B, std::int64_t t) {
  for (std::int64_t i = 0; i < a.l; ++i) {
    float* const row = a.M + i * a.m_stride;
    for (std::int64_t c = 0; c < t; ++c) {
      const float factor = A[c * a.l + i] * delta[c];
      const float* const b = B + c * a.q;
#pragma omp simd
      for (std::int64_t j = 0; j < a.q; ++j) row[j] += factor * b[j];
    }
  }
}

}  // namespace

void exact_step(ExactStep& a) {
  const std::int64_t d = std::min(a.l, a.q), tail = d - a.k;
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<float> factors(size((a.l + a.q) * tail + d + a.r + tail));
  float *const A = factors.data(), *const B = A + a.l * tail, *const S = B + a.q * tail, *const s = S + d, *const delta = s + a.r;
  std::vector<double> sums(size(2 * a.r + 1));
  double *const numerator = sums.data(), *const denominator = numerator + a.r, *const energy = denominator + a.r;
  a.applied = false;
  a.clipped = a.masked = 0;
  a.status = tail_svd({a.M, a.l, a.q, a.m_stride, 1, a.k, A, S, B, true});
  if (a.status != kSound) return;
  label_sums({a.X, a.y, A, B, a.bias, a.n, a.q, a.l, a.r, a.x_stride, 1, a.l, 1, a.q, a.ignored, numerator, denominator, energy,
              &a.masked});
  const SerialTeam team;
  const bool ok = true;
  refit(team, Refit<float>{S, numerator, denominator, energy, &ok, static_cast<int>(d), static_cast<int>(a.k),
                           static_cast<int>(a.r), a.tolerance, a.clip, s, &a.applied, &a.clipped});
  if (!a.applied) return;
  for (std::int64_t c = 0; c < tail; ++c) delta[c] = (c < a.r ? s[c] : 0.0f) - S[a.k + c];
  add(a, A, delta, B, a.drop ? tail : a.r);
}

}  // namespace lip_fast::cpu
