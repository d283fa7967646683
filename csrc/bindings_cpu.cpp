// lip_fast._native_cpu: the CPU kernels over raw addresses.
#include <algorithm>

#include "bindings.h"
#include "cpu/exact_step.h"
#include "cpu/fresh_columns.h"
#include "cpu/label_sums.h"
#include "cpu/projected_step.h"
#include "cpu/refit.h"
#include "cpu/room.h"
#include "cpu/round.h"
#include "cpu/small_svd.h"
#include "cpu/tail_svd.h"
#include "cpu/truncated_step.h"
#include "cpu/warm_svd.h"

using namespace lip_fast;

namespace {

/// A CPU has no streams: what was asked for is done on return.
struct Cpu {
  static void fresh_columns(float* out, std::int64_t rows, std::int64_t columns, const std::int64_t* step,
                            std::uint64_t seed, Address) {
    cpu::fresh_columns(out, rows, columns, *step, seed);
  }
  static void round(float* X, std::int64_t rows, std::int64_t columns, int dropped, const std::int64_t* step,
                    std::uint64_t seed, Address) {
    cpu::round(X, rows, columns, dropped, *step, seed);
  }
  template <class T>
  static void refit(const Refit<T>& arguments, Address) {
    cpu::refit(arguments);
  }
  template <class T>
  static void small_svd(const SmallSvd<T>& first, std::int64_t batch, Address) {
    cpu::small_svd(first, batch);
  }
  static std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m) { return cpu::warm_workspace(l, q, m); }
  static void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace, Address) {
    cpu::orthonormal_start(V, l, q, m, workspace);
  }
  static void warm_svd(const WarmSvd<float>& arguments, Address) { cpu::warm_svd(arguments); }
};

}  // namespace

PYBIND11_MODULE(_native_cpu, module) {
  module.doc() = "CPU kernels of lip_fast; lip_fast.backends.native is their front door.";
  define_kernels<Cpu>(module);
  define_small_svd<Cpu, double>(module, "float64");
  module.def(
      "tail_svd",
      [](Address M, std::int64_t l, std::int64_t q, std::int64_t row_stride, std::int64_t column_stride,
         std::int64_t rank, Address A, Address S, Address B) {
        const std::int64_t d = std::min(l, q);
        if (rank < 0 || rank > d) {
          throw std::invalid_argument("expected rank in 0.." + std::to_string(d) + ", got " + std::to_string(rank));
        }
        return cpu::tail_svd({pointer<const float>("M", M, l * q), l, q, row_stride, column_stride, rank,
                              pointer<float>("A", A, l * (d - rank)), pointer<float>("S", S, d),
                              pointer<float>("B", B, q * (d - rank))});
      },
      pybind11::arg("M"), pybind11::arg("l"), pybind11::arg("q"), pybind11::arg("row_stride"),
      pybind11::arg("column_stride"), pybind11::arg("rank"), pybind11::arg("A"), pybind11::arg("S"), pybind11::arg("B"),
      pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def(
      "label_sums",
      [](Address X, std::int64_t n, std::int64_t q, std::int64_t x_stride, Address y, Address A, std::int64_t l,
         std::int64_t a_row, std::int64_t a_column, Address B, std::int64_t b_row, std::int64_t b_column, std::int64_t r,
         Address bias, std::int64_t ignored, Address numerator, Address denominator, Address energy, Address masked) {
        cpu::label_sums({pointer<const float>("X", X, n * q), pointer<const std::int64_t>("y", y, n),
                         pointer<const float>("A", A, l * r), pointer<const float>("B", B, q * r),
                         bias == 0 ? nullptr : pointer<const float>("bias", bias, l), n, q, l, r, x_stride, a_row,
                         a_column, b_row, b_column, ignored, pointer<double>("numerator", numerator, r),
                         pointer<double>("denominator", denominator, r), pointer<double>("energy", energy, 1),
                         pointer<std::int64_t>("masked", masked, 1)});
      },
      pybind11::arg("X"), pybind11::arg("n"), pybind11::arg("q"), pybind11::arg("x_stride"), pybind11::arg("y"),
      pybind11::arg("A"), pybind11::arg("l"), pybind11::arg("a_row"), pybind11::arg("a_column"), pybind11::arg("B"),
      pybind11::arg("b_row"), pybind11::arg("b_column"), pybind11::arg("r"), pybind11::arg("bias"),
      pybind11::arg("ignored"), pybind11::arg("numerator"), pybind11::arg("denominator"), pybind11::arg("energy"),
      pybind11::arg("masked"), pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def(
      "exact_step",
      [](Address M, std::int64_t l, std::int64_t q, std::int64_t m_stride, int k, int r, bool drop, bool clip, double tolerance,
         int vector_bytes, Address X, std::int64_t n, std::int64_t x_stride, Address y, std::int64_t ignored, Address bias) {
        const std::int64_t d = std::min(l, q);
        if (k < 0 || r < 0 || k + r > d || d > cpu::kMostSmall) {
          throw std::invalid_argument("expected k + r <= min(l, q) <= " + std::to_string(cpu::kMostSmall) + ", got k = " +
                                      std::to_string(k) + ", r = " + std::to_string(r) + ", min(l, q) = " + std::to_string(d));
        }
        cpu::ExactStep a{};
        a.M = pointer<float>("M", M, l * q);
        a.l = l, a.q = q, a.m_stride = m_stride, a.k = k, a.r = r, a.drop = drop, a.clip = clip, a.tolerance = tolerance;
        a.vector_bytes = vector_bytes;
        a.batch = {pointer<const float>("X", X, n * q), n, x_stride, pointer<const std::int64_t>("y", y, n), ignored};
        a.bias = bias == 0 ? nullptr : pointer<const float>("bias", bias, l);
        {
          pybind11::gil_scoped_release release;
          cpu::exact_step(a);
        }
        return std::make_tuple(a.status, a.applied, a.clipped, a.masked);
      });
  module.def("indices_in_range", [](Address y, std::int64_t n, std::int64_t classes) {
    const std::int64_t* const from = pointer<const std::int64_t>("y", y, n);
    // Without a branch: negative ones are large where they have no sign.
    bool all = true;
    for (std::int64_t i = 0; i < n; ++i) all &= static_cast<std::uint64_t>(from[i]) < static_cast<std::uint64_t>(classes);
    return all;
  });
  module.def("vector_bytes", &cpu::vector_bytes, pybind11::arg("most"));
  module.def(
      "truncated_step",
      [](Address M, std::int64_t l, std::int64_t q, std::int64_t m_stride, Address basis, int k, int t, int fresh,
         std::uint64_t seed, std::int64_t step, bool drop, bool clip, double tolerance, int threads,
         int vector_bytes, Address X, std::int64_t n, std::int64_t x_stride, Address y, std::int64_t ignored, Address bias,
         Address A, Address S, Address B) {
        if (k < 0 || t < 1 || k > t || fresh < 1 || fresh > 16 || t + fresh > std::min<std::int64_t>({cpu::kMostSmall, l, q})) {
          throw std::invalid_argument("expected 0 <= k <= t and t + fresh <= min(l, q, 128), got k = " + std::to_string(k) +
                                      ", t = " + std::to_string(t) + ", fresh = " + std::to_string(fresh));
        }
        cpu::TruncatedStep a{};
        a.l = l, a.q = q, a.k = k, a.t = t, a.fresh = fresh, a.m_stride = m_stride, a.seed = seed, a.step = step;
        a.M = pointer<float>("M", M, l * q);
        a.basis = pointer<const float>("basis", basis, q * t);
        a.drop = drop, a.clip = clip, a.tolerance = tolerance, a.threads = threads;
        a.vector_bytes = vector_bytes;
        a.batch = {pointer<const float>("X", X, n * q), n, x_stride, pointer<const std::int64_t>("y", y, n), ignored};
        a.bias = bias == 0 ? nullptr : pointer<const float>("bias", bias, l);
        a.A = A == 0 ? nullptr : pointer<float>("A", A, l * t);
        a.S = pointer<float>("S", S, t), a.B = pointer<float>("B", B, q * t);
        {
          pybind11::gil_scoped_release release;
          cpu::truncated_step(a);
        }
        return std::make_tuple(a.status, a.applied, a.clipped, a.masked);
      });
  module.def(
      "projected_step",
      [](Address M, std::int64_t l, std::int64_t q, std::int64_t m_stride, Address basis, int k, int guards, int r, int fresh,
         std::uint64_t seed, std::int64_t step, bool drop, bool clip, double tolerance, double deepest, int threads,
         int vector_bytes, Address X, std::int64_t n, std::int64_t x_stride, Address y, std::int64_t ignored, Address bias,
         Address Q, Address left, Address Z, Address right, Address S, Address following) {
        const std::int64_t d = std::min(l, q);
        if (guards < 1 || k <= guards || r < 1 || fresh < 0 || fresh > 16 || guards + r + fresh > 128 || k + r + fresh > d) {
          throw std::invalid_argument(
              "expected 1 <= guards < k, r >= 1, guards + r + fresh <= 128 and k + r + fresh <= min(l, q), got k = " +
              std::to_string(k) + ", guards = " + std::to_string(guards) + ", r = " + std::to_string(r) +
              ", fresh = " + std::to_string(fresh));
        }
        cpu::ProjectedStep a{};
        a.l = l, a.q = q, a.k = k, a.guards = guards, a.r = r, a.fresh = fresh, a.m_stride = m_stride, a.seed = seed, a.step = step;
        a.M = pointer<float>("M", M, l * q);
        a.basis = pointer<const float>("basis", basis, q * (k + r));
        a.drop = drop, a.clip = clip, a.tolerance = tolerance, a.deepest = deepest, a.threads = threads;
        a.vector_bytes = vector_bytes;
        a.batch = {pointer<const float>("X", X, n * q), n, x_stride, pointer<const std::int64_t>("y", y, n), ignored};
        a.bias = bias == 0 ? nullptr : pointer<const float>("bias", bias, l);
        if (Q != 0) {
          const std::int64_t m = r + fresh, t = guards + m, both = cpu::padded(t) + cpu::padded(m);
          a.factors = {pointer<float>("Q", Q, l * cpu::padded(k - guards + cpu::padded(t))), pointer<float>("left", left, l * both),
                       pointer<float>("Z", Z, (k - guards + t) * q), pointer<float>("right", right, q * both), pointer<float>("S", S, m)};
        }
        a.following = pointer<float>("following", following, q * (k + r));
        {
          pybind11::gil_scoped_release release;
          cpu::projected_step(a);
        }
        return std::make_tuple(a.status, a.applied, a.clipped, a.masked, a.gamma, a.deeper, a.s_1, a.s_k);
      });
}
