// What an optimizer does to one entry of a weight (l, q), for kernels that hold it on chip, in float32.
//
// M' is a function of the old weight, the gradient and the updated state, rounded operation by operation: whoever
// computes it again from them gets the same bits. An update offers
//
//   kName, kInputs, kSettings    its rule in lip_fast/rules, and how many scalars and settings that has
//   kHeld, kScalars         arrays that are read beside the weight, the gradient first; values that its scalars are
//   M, held[k], scalars     addresses: matrices laid out as the weight is, and what its prepare() left
//   scaled, write           whether the gradient has a scale; whether M' is to be stored, by the caller
//   set(settings)           its other fields, on the host
//   prepare(inputs, scalars)    leaves its own scalars, in one thread
//   reads(k)                whether array k is read
//   update(x, take_old, w)  four entries w of M', where take_old(v) gives those of the weight, x.take(k, v) those of
//                           array k, x.put(address, v) stores, and x.scalar(i) is scalar i
#pragma once

#include <cmath>
#include <string>

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

/// What a rule is given: single values in memory, of which the last two may be null, and its settings.
constexpr int kMaxInputs = 3, kMaxSettings = 8;
struct UpdateInputs {
  const float* values[kMaxInputs];
  const float* grad_scale;
  const float* found_inf;
  double settings[kMaxSettings];
};

/// Leaves all scalars of an update.
template <class Update>
LIP_FAST_FN void prepare_update(const UpdateInputs& inputs, float* scalars) {
  static_assert(Update::kInputs <= kMaxInputs && Update::kSettings <= kMaxSettings);
  scalars[kApplied] = inputs.found_inf == nullptr || *inputs.found_inf == 0.0f ? 1.0f : 0.0f;
  scalars[kGradScale] = inputs.grad_scale == nullptr ? 1.0f : *inputs.grad_scale;
  Update::prepare(inputs, scalars);
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

/// The running means of a direction and of its square, held[1] and held[2], updated.
template <class Entries, class Update>
LIP_FAST_FN void advance_moments(const Entries& x, const Update& update, const float (&g)[4], float (&mean)[4],
                                 float (&square)[4]) {
  x.take(1, mean);
  // By what is left of 1, and not by beta: its rounding to float would change the limit by 1e-5.
  LIP_FAST_UNROLL
  for (int e = 0; e < 4; ++e) {
    mean[e] = rounded_add(mean[e], rounded_mul(update.share1, rounded_sub(g[e], mean[e])));
  }
  x.put(update.held[1], mean);
  x.take(2, square);
  LIP_FAST_UNROLL
  for (int e = 0; e < 4; ++e) {
    // An infinite one stays so, and is no NaN: its entry is never updated again.
    const float old = square[e];
    const float kept = old < INFINITY ? rounded_sub(old, rounded_mul(update.share2, old)) : old;
    square[e] = rounded_add(kept, rounded_mul(rounded_mul(update.share2, g[e]), g[e]));
  }
  x.put(update.held[2], square);
}

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101) in the order of torch.optim.AdamW, without amsgrad.
struct AdamWUpdate {
  static constexpr const char* kName = "adamw";
  static constexpr int kInputs = 2, kSettings = 5, kHeld = 3;
  enum { kStepSize = kOwnScalars, kCorrection, kShrinkage, kScalars };

  float* M;
  float* held[kHeld];  // gradient, exp_avg, exp_avg_sq
  const float* scalars;
  float share1, share2;  // 1 - beta1, 1 - beta2
  float eps;
  float sign;   // -1 to maximize
  bool scaled;  // the gradient is divided by a scale, in place
  bool write;

  /// beta1, beta2, eps, weight decay, maximize.
  void set(const double* settings) {
    share1 = static_cast<float>(1.0 - settings[0]);
    share2 = static_cast<float>(1.0 - settings[1]);
    eps = static_cast<float>(settings[2]);
    sign = settings[4] != 0.0 ? -1.0f : 1.0f;
  }

  /// In double, as 1 - beta^n of a first step has lost three digits in float.
  static LIP_FAST_FN void prepare(const UpdateInputs& inputs, float* scalars) {
    const float rate = *inputs.values[0];
    const double n = *inputs.values[1], beta1 = inputs.settings[0], beta2 = inputs.settings[1];
    const double weight_decay = inputs.settings[3];
    scalars[kStepSize] = static_cast<float>(rate / (1.0 - pow(beta1, n)));
    scalars[kCorrection] = static_cast<float>(sqrt(1.0 - pow(beta2, n)));
    scalars[kShrinkage] = static_cast<float>(1.0 - rate * weight_decay);
  }

  LIP_FAST_FN bool reads(int) const { return true; }

  template <class Entries, class TakeOld>
  LIP_FAST_FN void update(const Entries& x, TakeOld&& take_old, float (&w)[4]) const {
    float g[4], mean[4], square[4];
    take_gradient(x, *this, g);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) g[e] = rounded_mul(g[e], sign);
    advance_moments(x, *this, g, mean, square);
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

/// NAdam (Dozat, "Incorporating Nesterov Momentum into Adam", 2016) in the order of torch.optim.NAdam.
struct NAdamUpdate {
  static constexpr const char* kName = "nadam";
  static constexpr int kInputs = 3, kSettings = 7, kHeld = 3;
  enum { kOfGradient = kOwnScalars, kOfMean, kCorrection, kShrinkage, kScalars };

  float* M;
  float* held[kHeld];  // gradient, exp_avg, exp_avg_sq
  const float* scalars;
  float share1, share2;  // 1 - beta1, 1 - beta2
  float eps;
  float weight_decay;  // what is added to the gradient: 0 where the decay is decoupled
  float sign;          // -1 to maximize
  bool scaled;
  bool write;

  /// beta1, beta2, eps, weight decay, momentum decay, decoupled, maximize.
  void set(const double* settings) {
    share1 = static_cast<float>(1.0 - settings[0]);
    share2 = static_cast<float>(1.0 - settings[1]);
    eps = static_cast<float>(settings[2]);
    weight_decay = settings[5] != 0.0 ? 0.0f : static_cast<float>(settings[3]);
    sign = settings[6] != 0.0 ? -1.0f : 1.0f;
  }

  static LIP_FAST_FN void prepare(const UpdateInputs& inputs, float* scalars) {
    const double rate = *inputs.values[0], n = *inputs.values[1], product = *inputs.values[2];
    const double beta1 = inputs.settings[0], momentum_decay = inputs.settings[4];
    const double mu = beta1 * (1.0 - 0.5 * pow(0.96, n * momentum_decay));
    const double mu_next = beta1 * (1.0 - 0.5 * pow(0.96, (n + 1.0) * momentum_decay));
    scalars[kOfGradient] = static_cast<float>(rate * (1.0 - mu) / (1.0 - product));
    scalars[kOfMean] = static_cast<float>(rate * mu_next / (1.0 - product * mu_next));
    scalars[kCorrection] = static_cast<float>(1.0 - pow(inputs.settings[1], n));
    scalars[kShrinkage] = inputs.settings[5] != 0.0 ? static_cast<float>(1.0 - rate * inputs.settings[3]) : 1.0f;
  }

  LIP_FAST_FN bool reads(int) const { return true; }

  template <class Entries, class TakeOld>
  LIP_FAST_FN void update(const Entries& x, TakeOld&& take_old, float (&w)[4]) const {
    float g[4], mean[4], square[4];
    take_gradient(x, *this, g);
    turn(take_old, g, w);
    advance_moments(x, *this, g, mean, square);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      square[e] = rounded_add(rounded_sqrt(rounded_div(square[e], x.scalar(kCorrection))), eps);
      mean[e] = rounded_div(rounded_mul(x.scalar(kOfMean), mean[e]), square[e]);
    }
    // Taken once more, for want of registers to keep them.
    x.take(0, g);
    if (scaled) {
      LIP_FAST_UNROLL
      for (int e = 0; e < 4; ++e) g[e] = rounded_div(g[e], x.scalar(kGradScale));
    }
    turn(take_old, g, w);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) g[e] = rounded_div(rounded_mul(x.scalar(kOfGradient), g[e]), square[e]);
    take_old(w);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) {
      w[e] = rounded_sub(rounded_sub(rounded_mul(w[e], x.scalar(kShrinkage)), g[e]), mean[e]);
    }
  }

 private:
  /// The gradient becomes the direction of the moments.
  template <class TakeOld>
  LIP_FAST_FN void turn(TakeOld&& take_old, float (&g)[4], float (&w)[4]) const {
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) g[e] = rounded_mul(g[e], sign);
    // Of an infinite weight, 0 times it is NaN.
    if (weight_decay == 0.0f) return;
    take_old(w);
    LIP_FAST_UNROLL
    for (int e = 0; e < 4; ++e) g[e] = rounded_add(g[e], rounded_mul(weight_decay, w[e]));
  }
};

/// SGD in the order of torch.optim.SGD, with a momentum buffer or without one.
template <bool Buffered>
struct SGDUpdate {
  static constexpr const char* kName = "sgd";
  static constexpr int kInputs = 1, kSettings = 6, kHeld = Buffered ? 2 : 1;
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

  /// momentum, dampening, weight decay, nesterov, maximize, first.
  void set(const double* settings) {
    momentum = static_cast<float>(settings[0]);
    share = static_cast<float>(1.0 - settings[1]);
    weight_decay = static_cast<float>(settings[2]);
    nesterov = settings[3] != 0.0;
    sign = settings[4] != 0.0 ? -1.0f : 1.0f;
    first = settings[5] != 0.0;
  }

  static LIP_FAST_FN void prepare(const UpdateInputs& inputs, float* scalars) { scalars[kRate] = *inputs.values[0]; }

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

/// All updates: a new one is a struct above, its name here and in a line of a source file in cuda/.
template <class... Updates>
struct UpdateList {};
using AllUpdates = UpdateList<AdamWUpdate, NAdamUpdate, SGDUpdate<true>, SGDUpdate<false>>;

/// Calls ``use(update)`` for the rule of this name with so many arrays beside the weight; false where there is none.
template <class Use, class... Updates>
bool with_update(UpdateList<Updates...>, const std::string& rule, int held, Use&& use) {
  return ((rule == Updates::kName && held == Updates::kHeld && (use(Updates()), true)) || ...);
}

/// The weight is read as it is.
struct NoUpdate {
  static constexpr int kHeld = 0, kScalars = 0;
};

}  // namespace lip_fast
