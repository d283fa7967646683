// lip_fast._native_cpu: the CPU kernels over raw addresses.
#include <algorithm>

#include "bindings.h"
#include "cpu/fresh_columns.h"
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
}
