#include "cpu/label_sums.h"

#include <vector>

#include "core/config.h"

namespace lip_fast::cpu {
namespace {

// Bt: (r, q); offset: (r), bias . a_i.
LIP_FAST_MULTIVERSION void run(const LabelSums& a, const float* Bt, double* offset) {
  for (std::int64_t i = 0; i < a.r; ++i) a.numerator[i] = a.denominator[i] = offset[i] = 0;
  if (a.bias != nullptr) {
    for (std::int64_t c = 0; c < a.l; ++c) {
      const double bias = a.bias[c];
      for (std::int64_t i = 0; i < a.r; ++i) offset[i] += bias * a.A[c * a.a_row + i * a.a_column];
    }
  }
  double energy = 0;
  std::int64_t masked = 0;
  for (std::int64_t n = 0; n < a.n; ++n) {
    const std::int64_t label = a.y[n];
    if (label < 0 || label >= a.l) {
      masked += label != a.ignored;
      continue;
    }
    const float* const row = a.X + n * a.x_stride;
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (std::int64_t x = 0; x < a.q; ++x) square += row[x] * row[x];
    energy += square;
    for (std::int64_t i = 0; i < a.r; ++i) {
      const float* const b = Bt + i * a.q;
      float p = 0;
#pragma omp simd reduction(+ : p)
      for (std::int64_t x = 0; x < a.q; ++x) p += row[x] * b[x];
      a.numerator[i] += p * (a.A[label * a.a_row + i * a.a_column] - offset[i]);
      a.denominator[i] += static_cast<double>(p) * p;
    }
  }
  *a.energy = energy;
  *a.masked = masked;
}

}  // namespace

void label_sums(const LabelSums& a) {
  std::vector<double> offset(static_cast<std::size_t>(a.r));
  if (a.b_row == 1 && a.b_column == a.q) return run(a, a.B, offset.data());
  std::vector<float> Bt(static_cast<std::size_t>(a.q * a.r));
  for (std::int64_t i = 0; i < a.r; ++i) {
    for (std::int64_t x = 0; x < a.q; ++x) Bt[static_cast<std::size_t>(i * a.q + x)] = a.B[x * a.b_row + i * a.b_column];
  }
  run(a, Bt.data(), offset.data());
}

}  // namespace lip_fast::cpu
