// lip_fast._native_cpu: the CPU kernels over raw addresses.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "cpu/fresh_columns.h"

namespace py = pybind11;
using namespace lip_fast;

PYBIND11_MODULE(_native_cpu, module) {
  module.doc() = "CPU kernels of lip_fast; lip_fast.backends.native is their front door.";
  module.def(
      "fresh_columns",
      [](Address out, std::int64_t rows, std::int64_t columns, Address step, std::uint64_t seed) {
        cpu::fresh_columns(pointer<float>("out", out, rows * columns), rows, columns,
                           *pointer<const std::int64_t>("step", step, 1), seed);
      },
      py::arg("out"), py::arg("rows"), py::arg("columns"), py::arg("step"), py::arg("seed"),
      py::call_guard<py::gil_scoped_release>());
}
