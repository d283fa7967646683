// lip_fast._native_cpu: the CPU kernels over raw addresses.
#include <algorithm>

#include "bindings.h"
#include "cpu/fresh_columns.h"
#include "cpu/label_sums.h"
#include "cpu/refit.h"
#include "cpu/round.h"
#include "cpu/small_svd.h"
#include "cpu/tail_svd.h"
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
}
