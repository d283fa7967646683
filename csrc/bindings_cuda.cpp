// lip_fast._native_cuda: the CUDA kernels over raw device addresses and a stream. Importing it does not touch
// the driver.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "cuda/fresh_columns.h"

namespace py = pybind11;
using namespace lip_fast;

namespace {

cudaStream_t stream_at(Address address) { return reinterpret_cast<cudaStream_t>(address); }

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() = "CUDA kernels of lip_fast; lip_fast.backends.native is their front door.";
  module.attr("CUDART_VERSION") = CUDART_VERSION;
  module.def(
      "fresh_columns",
      [](Address out, std::int64_t rows, std::int64_t columns, Address step, std::uint64_t seed, Address stream) {
        cuda::fresh_columns(pointer<float>("out", out, rows * columns), rows, columns,
                            pointer<const std::int64_t>("step", step, 1), seed, stream_at(stream));
      },
      py::arg("out"), py::arg("rows"), py::arg("columns"), py::arg("step"), py::arg("seed"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}
