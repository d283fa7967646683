// What an optimizer does to one entry of a weight (l, q), for kernels that hold it on chip: AdamW and SGD in float32.
//
// M' is a function of the old weight and the updated state, rounded operation by operation: whoever computes it again
// from them gets the same bits. An update offers
//
//   kHeld, kScalars         arrays that are read beside the weight, the gradient first; values that its scalars are
//   M, held[k], scalars     addresses: matrices laid out as the weight is, and what its prepare() left
//   write                   whether M' is stored
//   reads(k), stores(k)     whether array k is read and written
//   updated(old, x, s)      M', with x, an entry of each array, brought up to date; s are the scalars
#pragma once

#include <cmath>

#include "core/config.h"

namespace lip_fast {

/// Arithmetic that no compiler may contract.
LIP_FAST_FN float rounded_add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
LIP_FAST_FN float rounded_mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LIP_FAST_FN float rounded_div(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
LIP_FAST_FN float rounded_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}
LIP_FAST_FN float rounded_sub(float a, float b) { return rounded_add(a, -b); }

/// Scalars that every update has, before its own: 1 where it is applied and 0 where nothing may be written, and what
/// the gradient is divided by.
enum UpdateScalar { kApplied, kGradScale, kOwnScalars };

LIP_FAST_FN void prepare_update(const float* grad_scale, const float* found_inf, float* scalars) {
  scalars[kApplied] = found_inf == nullptr || *found_inf == 0.0f ? 1.0f : 0.0f;
  scalars[kGradScale] = grad_scale == nullptr ? 1.0f : *grad_scale;
}

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101) in the order of torch.optim.AdamW, without amsgrad.
struct AdamWUpdate {
  static constexpr int kHeld = 3;
  enum { kStepSize = kOwnScalars, kCorrection, kDecay, kScalars };

  float* M;
  float* held[kHeld];  // gradient, exp_avg, exp_avg_sq
  const float* scalars;
  float share1, share2;  // 1 - beta1, 1 - beta2
  float eps;
  float sign;   // -1 to maximize
  bool scaled;  // the gradient is divided by a scale, in place
  bool write;

  /// One thread: in double, as 1 - beta^n of a first step has lost three digits in float.
  static LIP_FAST_FN void prepare(float rate, float update_count, double beta1, double beta2, double weight_decay,
                                  float* scalars) {
    const double n = update_count;
    scalars[kStepSize] = static_cast<float>(rate / (1.0 - pow(beta1, n)));
    scalars[kCorrection] = static_cast<float>(sqrt(1.0 - pow(beta2, n)));
    scalars[kDecay] = static_cast<float>(rate * weight_decay);
  }

  LIP_FAST_FN bool reads(int) const { return true; }
  LIP_FAST_FN bool stores(int k) const { return k > 0 || scaled; }

  LIP_FAST_FN float updated(float old, float (&x)[kHeld], const float (&s)[kScalars]) const {
    if (scaled) x[0] = rounded_div(x[0], s[kGradScale]);
    const float g = rounded_mul(x[0], sign);
    // By what is left of 1, and not by beta: its rounding to float would change the limit by 1e-5.
    x[1] = rounded_add(x[1], rounded_mul(share1, rounded_sub(g, x[1])));
    // An infinite one stays so, and is no NaN: its entry is never updated again.
    const float kept = x[2] < INFINITY ? rounded_sub(x[2], rounded_mul(share2, x[2])) : x[2];
    x[2] = rounded_add(kept, rounded_mul(rounded_mul(share2, g), g));
    const float denominator = rounded_add(rounded_div(rounded_sqrt(x[2]), s[kCorrection]), eps);
    const float decayed = rounded_sub(old, rounded_mul(s[kDecay], old));
    return rounded_sub(decayed, rounded_div(rounded_mul(s[kStepSize], x[1]), denominator));
  }
};

/// SGD in the order of torch.optim.SGD, with a momentum buffer or without one.
template <bool Buffered>
struct SGDUpdate {
  static constexpr int kHeld = Buffered ? 2 : 1;
  enum { kRate = kOwnScalars, kScalars };

  float* M;
  float* held[kHeld];  // gradient, and the buffer
  const float* scalars;
  float momentum, share;  // share = 1 - dampening
  float weight_decay;
  float sign;  // -1 to maximize
  bool nesterov;
  bool first;  // the buffer holds nothing yet
  bool scaled;
  bool write;

  static LIP_FAST_FN void prepare(float rate, float* scalars) { scalars[kRate] = rate; }

  LIP_FAST_FN bool reads(int k) const { return k == 0 || !first; }
  LIP_FAST_FN bool stores(int k) const { return k > 0 || scaled; }

  LIP_FAST_FN float updated(float old, float (&x)[kHeld], const float (&s)[kScalars]) const {
    if (scaled) x[0] = rounded_div(x[0], s[kGradScale]);
    float direction = rounded_add(rounded_mul(x[0], sign), rounded_mul(weight_decay, old));
    if constexpr (Buffered) {
      float& buffer = x[1];
      buffer = first ? direction : rounded_add(rounded_mul(momentum, buffer), rounded_mul(share, direction));
      direction = nesterov ? rounded_add(direction, rounded_mul(momentum, buffer)) : buffer;
    }
    return rounded_sub(old, rounded_mul(s[kRate], direction));
  }
};

/// The weight is read as it is.
struct NoUpdate {
  static constexpr int kHeld = 0, kScalars = 0;
};

}  // namespace lip_fast
