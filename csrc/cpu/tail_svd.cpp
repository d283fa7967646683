#include "cpu/tail_svd.h"

#include <algorithm>
#include <vector>

#include "core/small_svd.h"
#include "core/team.h"

namespace lip_fast::cpu {
namespace {

// Relative size of singular values whose vectors a double Gram matrix resolves: to 1e-16 over its square. Shorter ones
// are no directions, and have zero columns on the large side.
constexpr double kResolved = 1e-6;

struct Buffers {
  std::vector<double> X, G, V, s, large;
  std::vector<int> order;
};

LIP_FAST_MULTIVERSION int run(const TailSvd& a, Buffers& buffers) {
  const bool wide = a.l <= a.q;
  const int d = static_cast<int>(wide ? a.l : a.q);
  const std::int64_t n = wide ? a.q : a.l, tail = d - a.rank;
  const std::int64_t along_small = wide ? a.row_stride : a.column_stride;
  const std::int64_t along_large = wide ? a.column_stride : a.row_stride;
  double *const X = buffers.X.data(), *const G = buffers.G.data(), *const V = buffers.V.data();
  for (int i = 0; i < d; ++i) {
    for (std::int64_t x = 0; x < n; ++x) X[i * n + x] = a.M[i * along_small + x * along_large];
  }
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t x = 0; x < n; ++x) sum += X[i * n + x] * X[j * n + x];
      G[i * d + j] = G[j * d + i] = sum;
    }
    if (!is_finite(G[i * d + i])) return kNotFinite;
  }
  SerialTeam team;
  set_identity(team, V, d, d);
  const double scale = normalise(team, G, d, d);
  const int sweeps = rotate_columns(team, G, d, d, V, d, d, d);
  if (sweeps < 0) return kNotConverged;
  sort_columns(team, G, d, d, d, buffers.s.data(), buffers.order.data());
  const double first = square_root(scale * buffers.s[buffers.order[0]]);
  float *const small = wide ? a.A : a.B, *const large = wide ? a.B : a.A;
  for (int c = 0; c < d; ++c) {
    const int column = buffers.order[c];
    a.S[c] = static_cast<float>(square_root(scale * buffers.s[column]));
    if (c < a.rank) continue;
    const std::int64_t to = c - a.rank;
    double* const y = buffers.large.data();
    std::fill(y, y + n, 0.0);
    for (int i = 0; i < d; ++i) {
      const double v = V[column * d + i];
      small[i * tail + to] = static_cast<float>(v);
#pragma omp simd
      for (std::int64_t x = 0; x < n; ++x) y[x] += v * X[i * n + x];
    }
    double square = 0;
#pragma omp simd reduction(+ : square)
    for (std::int64_t x = 0; x < n; ++x) square += y[x] * y[x];
    const double length = square_root(square);
    a.S[c] = static_cast<float>(length);  // more accurate than the root of the eigenvalue
    const double inverse = length > kResolved * first ? 1.0 / length : 0.0;
    for (std::int64_t x = 0; x < n; ++x) large[x * tail + to] = static_cast<float>(y[x] * inverse);
  }
  return kSound;
}

}  // namespace

int tail_svd(const TailSvd& a) {
  const std::int64_t d = std::min(a.l, a.q), n = std::max(a.l, a.q), tail = d - a.rank;
  if (d == 0) return kSound;
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  Buffers buffers{std::vector<double>(size(d * n)), std::vector<double>(size(d * d)), std::vector<double>(size(d * d)),
                  std::vector<double>(size(d)),     std::vector<double>(size(n)),     std::vector<int>(size(d))};
  const int status = run(a, buffers);
  if (status != kSound) {
    std::fill(a.A, a.A + a.l * tail, 0.0f);
    std::fill(a.S, a.S + d, 0.0f);
    std::fill(a.B, a.B + a.q * tail, 0.0f);
  }
  return status;
}

}  // namespace lip_fast::cpu
