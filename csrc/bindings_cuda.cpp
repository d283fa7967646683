// lip_fast._native_cuda: the CUDA kernels over raw device addresses and a stream. Importing it does not touch
// the driver.
#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "cuda/fresh_columns.h"
#include "cuda/one_read.h"
#include "cuda/one_read_update.h"
#include "cuda/refit.h"
#include "cuda/round.h"
#include "cuda/small_svd.h"
#include "cuda/warm_svd.h"

#ifndef LIP_FAST_HELD_ARCHS
#define LIP_FAST_HELD_ARCHS "unknown"
#endif

using namespace lip_fast;

namespace {

struct Cuda {
  static cudaStream_t at(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

  static void fresh_columns(float* out, std::int64_t rows, std::int64_t columns, const std::int64_t* step,
                            std::uint64_t seed, Address stream) {
    cuda::fresh_columns(out, rows, columns, step, seed, at(stream));
  }
  static void round(float* X, std::int64_t rows, std::int64_t columns, int dropped, const std::int64_t* step,
                    std::uint64_t seed, Address stream) {
    cuda::round(X, rows, columns, dropped, step, seed, at(stream));
  }
  template <class T>
  static void refit(const Refit<T>& arguments, Address stream) {
    cuda::refit(arguments, at(stream));
  }
  template <class T>
  static void small_svd(const SmallSvd<T>& first, std::int64_t batch, Address stream) {
    cuda::small_svd(first, batch, at(stream));
  }
  static std::int64_t warm_workspace(std::int64_t l, std::int64_t q, int m) { return cuda::warm_workspace(l, q, m); }
  static void orthonormal_start(float* V, std::int64_t l, std::int64_t q, int m, float* workspace, Address stream) {
    cuda::orthonormal_start(V, l, q, m, workspace, at(stream));
  }
  static void warm_svd(const WarmSvd<float>& arguments, Address stream) { cuda::warm_svd(arguments, at(stream)); }
};

void define_one_read(pybind11::module_& module) {
  namespace py = pybind11;
  // Floats, or -1 where the current device cannot run the kernel for this shape.
  module.def("one_read_workspace", &cuda::one_read_workspace, py::arg("rows"), py::arg("columns"), py::arg("m"),
             py::call_guard<py::gil_scoped_release>());
  module.def(
      "one_read",
      [](Address M, std::int64_t rows, std::int64_t columns, std::int64_t stride, Address V, int m, Address Y,
         Address Z, Address workspace, std::int64_t workspace_size, Address stream) {
        cuda::one_read(pointer<const float>("M", M, rows * columns), rows, columns, stride,
                       pointer<const float>("V", V, m * columns), m, pointer<float>("Y", Y, m * rows),
                       pointer<float>("Z", Z, m * columns), pointer<float>("workspace", workspace, workspace_size),
                       workspace_size, Cuda::at(stream));
      },
      py::arg("M"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("V"), py::arg("m"), py::arg("Y"),
      py::arg("Z"), py::arg("workspace"), py::arg("workspace_size"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>());
}

const float* scalar(const char* name, Address address) {
  return address == 0 ? nullptr : pointer<const float>(name, address, 1);
}

cuda::UpdateProducts products(std::int64_t rows, std::int64_t columns, std::int64_t stride, Address V, int m, Address Y,
                              Address Z, Address workspace, std::int64_t size, Address stream) {
  return {rows,
          columns,
          stride,
          pointer<const float>("V", V, m * columns),
          m,
          pointer<float>("Y", Y, m * rows),
          pointer<float>("Z", Z, m * columns),
          pointer<float>("workspace", workspace, size),
          size,
          Cuda::at(stream)};
}

void expect_count(const char* name, std::size_t count, int expected) {
  if (count == static_cast<std::size_t>(expected)) return;
  throw std::invalid_argument("expected " + std::to_string(expected) + " " + name + ", got " + std::to_string(count));
}

void define_updates(pybind11::module_& module) {
  namespace py = pybind11;
  // Floats, or -1 where there is no kernel of this rule with so many arrays beside the weight, or the current device
  // cannot run it for this shape.
  module.def(
      "update_one_read_workspace",
      [](const std::string& rule, int held, std::int64_t rows, std::int64_t columns, int m) {
        std::int64_t size = -1;
        with_update(AllUpdates(), rule, held, [&](auto update) {
          size = cuda::update_one_read_workspace<decltype(update)>(rows, columns, m);
        });
        return size;
      },
      py::arg("rule"), py::arg("held"), py::arg("rows"), py::arg("columns"), py::arg("m"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "update_one_read",
      [](const std::string& rule, Address M, const std::vector<Address>& held, std::int64_t rows, std::int64_t columns,
         std::int64_t stride, Address V, int m, Address Y, Address Z, Address workspace, std::int64_t workspace_size,
         const std::vector<Address>& values, Address grad_scale, Address found_inf, const std::vector<double>& settings,
         bool write, Address stream) {
        const cuda::UpdateProducts into = products(rows, columns, stride, V, m, Y, Z, workspace, workspace_size, stream);
        const auto run = [&](auto update) {
          using Update = decltype(update);
          expect_count("scalars", values.size(), Update::kInputs);
          expect_count("settings", settings.size(), Update::kSettings);
          UpdateInputs inputs{};
          for (int i = 0; i < Update::kInputs; ++i) inputs.values[i] = pointer<const float>("a scalar", values[i], 1);
          inputs.grad_scale = scalar("grad_scale", grad_scale);
          inputs.found_inf = scalar("found_inf", found_inf);
          for (int i = 0; i < Update::kSettings; ++i) inputs.settings[i] = settings[i];
          update.set(inputs.settings);
          update.M = pointer<float>("M", M, rows * columns);
          for (int k = 0; k < Update::kHeld; ++k) {
            update.held[k] = pointer<float>("the gradient and the state", held[k], rows * columns);
          }
          update.scaled = grad_scale != 0;
          update.write = write;
          cuda::update_one_read(update, inputs, into);
        };
        if (!with_update(AllUpdates(), rule, static_cast<int>(held.size()), run)) {
          throw std::invalid_argument("expected a rule with so many arrays that there is a kernel of, got " + rule +
                                      " and " + std::to_string(held.size()));
        }
      },
      py::arg("rule"), py::arg("M"), py::arg("held"), py::arg("rows"), py::arg("columns"), py::arg("stride"),
      py::arg("V"), py::arg("m"), py::arg("Y"), py::arg("Z"), py::arg("workspace"), py::arg("workspace_size"),
      py::arg("values"), py::arg("grad_scale"), py::arg("found_inf"), py::arg("settings"), py::arg("write"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() = "CUDA kernels of lip_fast; lip_fast.backends.native is their front door.";
  module.attr("CUDA_ARCHS") = LIP_FAST_HELD_ARCHS;
  module.attr("CUDART_VERSION") = CUDART_VERSION;
  // The newest CUDA that the driver knows, as 13000 for 13.0; 0 without a driver.
  module.def("driver_version", [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
  });
  define_kernels<Cuda>(module);
  define_one_read(module);
  define_updates(module);
}
