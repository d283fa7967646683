// Properties of the working precision, and the few functions of <cmath> that differ between compilers.
#pragma once

#include <cmath>

#include "core/config.h"

namespace lip_fast {

template <class T>
struct Real;

template <>
struct Real<float> {
  static constexpr float epsilon = 1.1920929e-07f;
  static constexpr float largest = 3.4028235e+38f;
};

template <>
struct Real<double> {
  static constexpr double epsilon = 2.220446049250313e-16;
  static constexpr double largest = 1.7976931348623157e+308;
};

/// False for infinities and NaN.
template <class T>
LIP_FAST_FN bool is_finite(T x) {
  return x >= -Real<T>::largest && x <= Real<T>::largest;
}

LIP_FAST_FN float square_root(float x) { return ::sqrtf(x); }
LIP_FAST_FN double square_root(double x) { return ::sqrt(x); }

template <class T>
LIP_FAST_FN T absolute(T x) {
  return x < T(0) ? -x : x;
}

template <class T>
LIP_FAST_FN T larger(T x, T y) {
  return x < y ? y : x;
}

}  // namespace lip_fast
