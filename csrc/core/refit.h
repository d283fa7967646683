// Refitted singular values from the sums of a batch, with every guard of the step.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/real.h"

namespace lip_fast {

/// A batch that puts less than this share of its energy on a direction says nothing of its singular value.
constexpr double kSeen = 1e-6;

template <class T>
struct Refit {
  const T* S;  // (t), descending
  const double *numerator, *denominator;  // (r)
  const double* energy;
  const bool* ok;
  int t, rank, r;
  double tolerance;
  bool clip;
  T* s;  // (r), written
  bool* sound;
  std::int64_t* clipped;
};

template <class Team, class T>
LIP_FAST_FN void refit(Team& team, const Refit<T>& a) {
  const double unlimited = Real<double>::largest;
  const double limit = a.clip && a.t > 0 ? static_cast<double>(a.S[a.rank > 0 ? a.rank - 1 : 0]) : unlimited;
  const double smallest = a.t > 0 ? a.tolerance * static_cast<double>(a.S[0]) : 0.0;
  const double total = *a.energy;
  // What is not finite is carried along to the end: no comparison with it holds.
  double bound = 0, clipped = 0;
  for (int i = team.rank(); i < a.t; i += team.size()) bound += absolute(static_cast<double>(a.S[i]));
  for (int i = team.rank(); i < a.r; i += team.size()) {
    const double n = a.numerator[i], d = a.denominator[i];
    const bool finite = is_finite(n) && is_finite(d);
    double value = static_cast<double>(a.S[a.rank + i]);
    if (finite && d > kSeen * total && value > smallest) {
      value = n / d;
      if (absolute(value) > limit) {
        value = value < 0 ? -limit : limit;
        clipped += 1;
      }
    }
    bound += finite ? absolute(value) : unlimited;
    a.s[i] = static_cast<T>(value);
  }
  bound = team.sum(bound);
  clipped = team.sum(clipped);
  // Entries of A diag(s) B^T are bounded by the sum of |s|, taken here with all old values on top; a quarter of the
  // range leaves room for the weight that it is added to.
  const bool sound = *a.ok && is_finite(total) && bound < static_cast<double>(Real<T>::largest) / 4;
  if (!sound) {
    for (int i = team.rank(); i < a.r; i += team.size()) a.s[i] = a.S[a.rank + i];
  }
  if (team.rank() == 0) {
    *a.sound = sound;
    *a.clipped = sound ? static_cast<std::int64_t>(clipped) : 0;
  }
}

}  // namespace lip_fast
