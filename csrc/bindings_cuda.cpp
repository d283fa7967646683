// lip_fast._native_cuda: the CUDA kernels over raw device addresses and a stream. Importing it does not touch
// the driver.
#include <cuda_runtime.h>

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

float* matrix(const char* name, Address address, std::int64_t rows, std::int64_t columns) {
  return pointer<float>(name, address, rows * columns);
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

void define_updates(pybind11::module_& module) {
  namespace py = pybind11;
  // Floats, or -1 where the current device cannot run the kernel for this shape.
  module.def("adamw_one_read_workspace", &cuda::adamw_one_read_workspace, py::arg("rows"), py::arg("columns"),
             py::arg("m"), py::call_guard<py::gil_scoped_release>());
  module.def("sgd_one_read_workspace", &cuda::sgd_one_read_workspace, py::arg("rows"), py::arg("columns"), py::arg("m"),
             py::arg("buffered"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "adamw_one_read",
      [](Address M, Address grad, Address exp_avg, Address exp_avg_sq, std::int64_t rows, std::int64_t columns,
         std::int64_t stride, Address V, int m, Address Y, Address Z, Address workspace, std::int64_t workspace_size,
         Address lr, Address update_count, Address grad_scale, Address found_inf, double beta1, double beta2,
         double eps, double weight_decay, bool maximize, bool write, Address stream) {
        const AdamWUpdate update{matrix("M", M, rows, columns),
                                 {matrix("grad", grad, rows, columns), matrix("exp_avg", exp_avg, rows, columns),
                                  matrix("exp_avg_sq", exp_avg_sq, rows, columns)},
                                 nullptr,
                                 static_cast<float>(1.0 - beta1),
                                 static_cast<float>(1.0 - beta2),
                                 static_cast<float>(eps),
                                 maximize ? -1.0f : 1.0f,
                                 grad_scale != 0,
                                 write};
        cuda::adamw_one_read(
            update,
            {pointer<const float>("lr", lr, 1), scalar("grad_scale", grad_scale), scalar("found_inf", found_inf)},
            pointer<const float>("update_count", update_count, 1), beta1, beta2, weight_decay,
            products(rows, columns, stride, V, m, Y, Z, workspace, workspace_size, stream));
      },
      py::arg("M"), py::arg("grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("rows"), py::arg("columns"),
      py::arg("stride"), py::arg("V"), py::arg("m"), py::arg("Y"), py::arg("Z"), py::arg("workspace"),
      py::arg("workspace_size"), py::arg("lr"), py::arg("update_count"), py::arg("grad_scale"), py::arg("found_inf"),
      py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("maximize"),
      py::arg("write"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "sgd_one_read",
      [](Address M, Address grad, Address buffer, std::int64_t rows, std::int64_t columns, std::int64_t stride,
         Address V, int m, Address Y, Address Z, Address workspace, std::int64_t workspace_size, Address lr, Address grad_scale,
         Address found_inf, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
         bool first, bool write, Address stream) {
        const cuda::UpdateInputs inputs{pointer<const float>("lr", lr, 1), scalar("grad_scale", grad_scale),
                                        scalar("found_inf", found_inf)};
        const cuda::UpdateProducts into =
            products(rows, columns, stride, V, m, Y, Z, workspace, workspace_size, stream);
        const auto run = [&](auto update) {
          update.M = matrix("M", M, rows, columns);
          update.held[0] = matrix("grad", grad, rows, columns);
          if constexpr (decltype(update)::kHeld > 1) update.held[1] = matrix("momentum_buffer", buffer, rows, columns);
          update.momentum = static_cast<float>(momentum);
          update.share = static_cast<float>(1.0 - dampening);
          update.weight_decay = static_cast<float>(weight_decay);
          update.sign = maximize ? -1.0f : 1.0f;
          update.nesterov = nesterov;
          update.first = first;
          update.scaled = grad_scale != 0;
          update.write = write;
          cuda::sgd_one_read(update, inputs, into);
        };
        if (buffer != 0) {
          run(SGDUpdate<true>());
        } else {
          run(SGDUpdate<false>());
        }
      },
      py::arg("M"), py::arg("grad"), py::arg("buffer"), py::arg("rows"), py::arg("columns"), py::arg("stride"),
      py::arg("V"), py::arg("m"), py::arg("Y"), py::arg("Z"), py::arg("workspace"), py::arg("workspace_size"),
      py::arg("lr"), py::arg("grad_scale"), py::arg("found_inf"), py::arg("momentum"), py::arg("dampening"),
      py::arg("weight_decay"), py::arg("nesterov"), py::arg("maximize"), py::arg("first"), py::arg("write"),
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
