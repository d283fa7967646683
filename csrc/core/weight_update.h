// What an optimizer does to one entry of a weight (l, q), for kernels that hold it on chip: AdamW and SGD in float32.
//
// M' is a function of the old weight and the updated state, rounded operation by operation: whoever computes it again
// from them gets the same bits. An update offers
//
//   kHeld, kScalars         arrays that are read beside the weight, the gradient first; values that its scalars are
//   M, held[k], scalars     addresses: matrices laid out as the weight is, and what its prepare() left
//   write                   whether M' is to be stored, by the caller
//   reads(k)                whether array k is read
//   update(x, take_old, w)  four entries w of M', where take_old(v) gives those of the weight, x.take(k, v) those of
//                           array k, x.put(address, v) stores, and x.scalar(i) is scalar i
#pragma once

#include <cmath>

#include "core/config.h"
#include "core/unroll.h"

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

/// Four entries of the gradient, without its scale, which they lose in memory too.
template <class Entries, class Update>
LIP_FAST_FN void take_gradient(const Entries& x, const Update& update, float (&g)[4]) {
  x.take(0, g);
  if (!update.scaled) return;
  LIP_FAST_UNROLL
  for (int e = 0; e < 4; ++e) g[e] = rounded_div(g[e], x.scalar(kGradScale));
  x.put(update.held[0], g);
}

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101) in the order of torch.optim.AdamW, without amsgrad.
struct AdamWUpdate {
  static constexpr int kHeld = 3;
  enum { kStepSize = kOwnScalars, kCorrection, kShrinkage, kScalars };

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
    scalars[kShrinkage] = static_cast<float>(1.0 - rate * weight_decay);
  }

  LIP_FAST_FN bool reads(int) const { return true; }

  template <class Entries, class TakeOld>
  LIP_FAST_FN void update(const Entries& x, TakeOld&& take_old, float (&w)[4]) const {
    float g[4], mean[4], square[4];
    take_gradient(x, *this, g);
    x.take(1, mean);
    // By what is left of 1, and not by beta: its rounding to float would change the limit by 1e-5.
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      g[e] = rounded_mul(g[e], sign);
      mean[e] = rounded_add(mean[e], rounded_mul(share1, rounded_sub(g[e], mean[e])));
    }
    x.put(held[1], mean);
    x.take(2, square);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      // An infinite one stays so, and is no NaN: its entry is never updated again.
      const float old = square[e];
      const float kept = old < INFINITY ? rounded_sub(old, rounded_mul(share2, old)) : old;
      square[e] = rounded_add(kept, rounded_mul(rounded_mul(share2, g[e]), g[e]));
    }
    x.put(held[2], square);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      square[e] = rounded_add(rounded_div(rounded_sqrt(square[e]), x.scalar(kCorrection)), eps);
      mean[e] = rounded_div(rounded_mul(x.scalar(kStepSize), mean[e]), square[e]);
    }
    take_old(w);
    // One factor, as in torch: what is infinite stays so, where inf - decay * inf is NaN.
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) w[e] = rounded_sub(rounded_mul(w[e], x.scalar(kShrinkage)), mean[e]);
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

  template <class Entries, class TakeOld>
  LIP_FAST_FN void update(const Entries& x, TakeOld&& take_old, float (&w)[4]) const {
    float direction[4];
    take_gradient(x, *this, direction);
    take_old(w);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      direction[e] = rounded_mul(direction[e], sign);
      // Of an infinite weight, 0 times it is NaN.
      if (weight_decay != 0.0f) direction[e] = rounded_add(direction[e], rounded_mul(weight_decay, w[e]));
    }
    if constexpr (Buffered) {
      float buffer[4];
      x.take(1, buffer);
      LIP_FAST_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float d = direction[e];
        buffer[e] = first ? d : rounded_add(rounded_mul(momentum, buffer[e]), rounded_mul(share, d));
        direction[e] = nesterov ? rounded_add(d, rounded_mul(momentum, buffer[e])) : buffer[e];
      }
      x.put(held[1], buffer);
    }
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) w[e] = rounded_sub(w[e], rounded_mul(x.scalar(kRate), direction[e]));
  }
};

/// The weight is read as it is.
struct NoUpdate {
  static constexpr int kHeld = 0, kScalars = 0;
};

}  // namespace lip_fast
