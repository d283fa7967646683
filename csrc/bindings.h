// What both extension modules offer to Python, over raw addresses: a backend brings the kernels and its stream.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/refit.h"
#include "core/small_svd.h"
#include "core/warm_pipeline.h"

#ifndef LIP_FAST_VERSION
#define LIP_FAST_VERSION "unknown"
#endif

namespace lip_fast {

using Address = std::uintptr_t;

/// The address of ``count`` values as a pointer; null and misaligned addresses are refused.
template <class T>
T* pointer(const char* name, Address address, std::int64_t count) {
  if (count < 0) {
    throw std::invalid_argument(std::string("expected ") + name + " of at least 0 values, got " +
                                std::to_string(count));
  }
  if (address == 0 && count > 0) {
    throw std::invalid_argument(std::string("expected ") + name + " of " + std::to_string(count) +
                                " values, got a null address");
  }
  if (address % alignof(T) != 0) {
    throw std::invalid_argument(std::string("expected ") + name + " aligned to " + std::to_string(alignof(T)) +
                                " bytes, got address " + std::to_string(address));
  }
  return reinterpret_cast<T*>(address);
}

inline void expect_columns(int m) {
  if (m < 1 || m > kMaxColumns) {
    throw std::invalid_argument("expected 1.." + std::to_string(kMaxColumns) + " columns, got " + std::to_string(m));
  }
}

template <class Backend>
void expect_workspace(std::int64_t l, std::int64_t q, int m, std::int64_t values) {
  const std::int64_t needed = Backend::warm_workspace(l, q, m);
  if (values < needed) {
    throw std::invalid_argument("expected a workspace of " + std::to_string(needed) + " values, got " +
                                std::to_string(values));
  }
}

template <class Backend, class T>
void define_typed(pybind11::module_& module, const std::string& suffix) {
  namespace py = pybind11;
  module.def(
      ("refit_" + suffix).c_str(),
      [](Address S, int t, Address numerator, Address denominator, int r, Address energy, Address ok, int rank,
         double tolerance, bool clip, Address s, Address sound, Address clipped, Address stream) {
        if (r < 0 || rank < 0 || rank + r > t) {
          throw std::invalid_argument("expected rank + r within the " + std::to_string(t) + " singular values, got " +
                                      std::to_string(rank) + " + " + std::to_string(r));
        }
        Backend::refit(Refit<T>{pointer<const T>("S", S, t), pointer<const double>("numerator", numerator, r),
                                pointer<const double>("denominator", denominator, r),
                                pointer<const double>("energy", energy, 1), pointer<const bool>("ok", ok, 1), t, rank, r,
                                tolerance, clip, pointer<T>("s", s, r), pointer<bool>("sound", sound, 1),
                                pointer<std::int64_t>("clipped", clipped, 1)},
                       stream);
      },
      py::arg("S"), py::arg("t"), py::arg("numerator"), py::arg("denominator"), py::arg("r"), py::arg("energy"),
      py::arg("ok"), py::arg("rank"), py::arg("tolerance"), py::arg("clip"), py::arg("s"), py::arg("sound"),
      py::arg("clipped"), py::arg("stream") = Address{0}, py::call_guard<py::gil_scoped_release>());
}

template <class Backend, class T>
void define_small_svd(pybind11::module_& module, const std::string& suffix) {
  namespace py = pybind11;
  module.def(
      ("small_svd_" + suffix).c_str(),
      [](Address matrix, Address start, std::int64_t batch, int m, Address U, Address S, Address V, Address work,
         Address sweeps, Address status, Address stream) {
        expect_columns(m);
        const std::int64_t count = batch * m * m;
        Backend::small_svd(SmallSvd<T>{pointer<const T>("matrix", matrix, count),
                                       start == 0 ? nullptr : pointer<const T>("start", start, count),
                                       pointer<T>("U", U, count), pointer<T>("S", S, batch * m), pointer<T>("V", V, count),
                                       pointer<T>("work", work, count), m, true,
                                       pointer<std::int64_t>("sweeps", sweeps, batch),
                                       pointer<std::int64_t>("status", status, batch)},
                           batch, stream);
      },
      py::arg("matrix"), py::arg("start"), py::arg("batch"), py::arg("m"), py::arg("U"), py::arg("S"), py::arg("V"),
      py::arg("work"), py::arg("sweeps"), py::arg("status"), py::arg("stream") = Address{0},
      py::call_guard<py::gil_scoped_release>());
}

/// Everything but what only one of the backends has.
template <class Backend>
void define_kernels(pybind11::module_& module) {
  namespace py = pybind11;
  module.attr("__version__") = LIP_FAST_VERSION;
  module.attr("MAX_COLUMNS") = kMaxColumns;
  module.def(
      "fresh_columns",
      [](Address out, std::int64_t rows, std::int64_t columns, Address step, std::uint64_t seed, Address stream) {
        Backend::fresh_columns(pointer<float>("out", out, rows * columns), rows, columns,
                               pointer<const std::int64_t>("step", step, 1), seed, stream);
      },
      py::arg("out"), py::arg("rows"), py::arg("columns"), py::arg("step"), py::arg("seed"),
      py::arg("stream") = Address{0}, py::call_guard<py::gil_scoped_release>());
  module.def(
      "round",
      [](Address X, std::int64_t rows, std::int64_t columns, int dropped, Address step, std::uint64_t seed,
         Address stream) {
        if (dropped < 0 || dropped > 16) {
          throw std::invalid_argument("expected 0..16 dropped bits, got " + std::to_string(dropped));
        }
        Backend::round(pointer<float>("X", X, rows * columns), rows, columns, dropped,
                       pointer<const std::int64_t>("step", step, 1), seed, stream);
      },
      py::arg("X"), py::arg("rows"), py::arg("columns"), py::arg("dropped"), py::arg("step"), py::arg("seed"),
      py::arg("stream") = Address{0}, py::call_guard<py::gil_scoped_release>());
  module.def(
      "warm_workspace",
      [](std::int64_t l, std::int64_t q, int m) {
        expect_columns(m);
        return Backend::warm_workspace(l, q, m);
      },
      py::arg("l"), py::arg("q"), py::arg("m"));
  module.def(
      "orthonormal_start",
      [](Address V, std::int64_t l, std::int64_t q, int m, Address workspace, std::int64_t values, Address stream) {
        expect_columns(m);
        expect_workspace<Backend>(l, q, m, values);
        Backend::orthonormal_start(pointer<float>("V", V, q * m), l, q, m, pointer<float>("workspace", workspace, values),
                                   stream);
      },
      py::arg("V"), py::arg("l"), py::arg("q"), py::arg("m"), py::arg("workspace"), py::arg("values"),
      py::arg("stream") = Address{0}, py::call_guard<py::gil_scoped_release>());
  module.def(
      "warm_svd",
      [](std::int64_t l, std::int64_t q, int m, int t, Address Y, Address Z, Address A, Address S, Address B,
         Address status, Address workspace, std::int64_t values, Address stream) {
        expect_columns(m);
        if (t < 1 || t > m) {
          throw std::invalid_argument("expected 1.." + std::to_string(m) + " triplets, got " + std::to_string(t));
        }
        expect_workspace<Backend>(l, q, m, values);
        Backend::warm_svd(WarmSvd<float>{l, q, m, t, pointer<const float>("Y", Y, l * m), pointer<const float>("Z", Z, q * m),
                                         pointer<float>("A", A, l * t), pointer<float>("S", S, t),
                                         pointer<float>("B", B, q * t), pointer<std::int64_t>("status", status, 1),
                                         pointer<float>("workspace", workspace, values)},
                          stream);
      },
      py::arg("l"), py::arg("q"), py::arg("m"), py::arg("t"), py::arg("Y"), py::arg("Z"), py::arg("A"), py::arg("S"),
      py::arg("B"), py::arg("status"), py::arg("workspace"), py::arg("values"), py::arg("stream") = Address{0},
      py::call_guard<py::gil_scoped_release>());
  define_typed<Backend, float>(module, "float32");
  define_typed<Backend, double>(module, "float64");
  define_small_svd<Backend, float>(module, "float32");
}

}  // namespace lip_fast
