// The stages of a warm SVD in order, over any way to run them: kernels on a stream, or loops on a CPU.
//
// A launcher offers ``int blocks(rows, m)``, the grid of a stage over a tall matrix, and one call a stage: ``gram``,
// ``reduce``, ``pass``, ``apply``, ``solve`` and ``judge``.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/tall.h"
#include "core/warm_svd.h"

namespace lip_fast {

/// Partial sums that a stage may read as they are; more are summed by a stage of their own first.
constexpr int kPartials = 8;

/// The working memory of a warm SVD of (l, q) with m columns, carved out of one buffer.
template <class T>
struct Workspace {
  T *Q, *Z, *P;         // (l, m), (q, m), (q, m)
  T *partials[2];       // (blocks, m, m): a stage reads one while it writes the other
  T *gram, *R, *inverse_1, *inverse_2, *W_A, *W_B;  // (m, m)
  T *work;              // (2, m, m)
  int *info;            // kInfos
  std::int64_t size;    // values in all

  Workspace(T* start, std::int64_t l, std::int64_t q, int m, int blocks) : start_(start), size_(0) {
    const std::int64_t square = static_cast<std::int64_t>(m) * m;
    Q = take(l * m);
    Z = take(q * m);
    P = take(q * m);
    for (T*& sums : partials) sums = take(blocks * square);
    for (T** matrix : {&gram, &R, &inverse_1, &inverse_2, &W_A, &W_B}) *matrix = take(square);
    work = take(2 * square);
    info = reinterpret_cast<int*>(take(kInfos));
    size = size_;
  }

 private:
  T* take(std::int64_t count) {
    T* const here = start_ == nullptr ? nullptr : start_ + size_;
    size_ += (count + 3) / 4 * 4;  // 16-byte boundaries
    return here;
  }
  T* start_;
  std::int64_t size_;
};

template <class Launcher>
int most_blocks(const Launcher& run, std::int64_t l, std::int64_t q, int m) {
  return std::max(run.blocks(l, m), run.blocks(q, m));
}

/// Values of workspace that ``orthonormal_start`` and ``warm_svd`` need.
template <class T, class Launcher>
std::int64_t warm_workspace(const Launcher& run, std::int64_t l, std::int64_t q, int m) {
  return Workspace<T>(nullptr, l, q, m, most_blocks(run, l, q, m)).size;
}

/// Few enough partial sums for a stage to read.
template <class T>
struct Sums {
  const T* partials;
  int count;
};

template <class Launcher, class T>
Sums<T> few(Launcher& run, const T* partials, int count, int m, T* sum) {
  if (count <= kPartials) return {partials, count};
  run.reduce(partials, count, m, sum);
  return {sum, 1};
}

/// V (q, m) = [basis, fresh signs] in, orthonormal out: the fresh columns keep only what the basis does not have, so
/// that their products with M are not drowned by the directions that are known.
template <class Launcher, class T>
void orthonormal_start(Launcher& run, T* V, std::int64_t l, std::int64_t q, int m, T* workspace) {
  const Workspace<T> w(workspace, l, q, m, most_blocks(run, l, q, m));
  const int blocks = run.blocks(q, m);
  run.gram(Tall<const T>{V, q}, m, w.partials[0], blocks);
  const Sums<T> G = few(run, w.partials[0], blocks, m, w.gram);
  run.pass(Pass<T>{{V, q}, m, G.partials, G.count, nullptr, {V, q}, nullptr, nullptr, nullptr, w.info + kPassV}, blocks);
}

template <class T>
struct WarmSvd {
  std::int64_t l, q;
  int m, t;
  const T *Y, *Z;  // M V (l, m) and M^T Y (q, m), columns contiguous
  T* A;            // (l, t), rows contiguous
  T* S;            // (t)
  T* B;            // (q, t), columns contiguous
  std::int64_t* status;
  T* workspace;    // warm_workspace(l, q, m) values
};

template <class Launcher, class T>
void warm_svd(Launcher& run, const WarmSvd<T>& a) {
  const int m = a.m, t = a.t, over_l = run.blocks(a.l, m), over_q = run.blocks(a.q, m);
  const Workspace<T> w(a.workspace, a.l, a.q, m, std::max(over_l, over_q));
  T *const first = w.partials[0], *const second = w.partials[1];

  // Y = Q R, but for the inverse of the second pass.
  run.gram(Tall<const T>{a.Y, a.l}, m, first, over_l);
  Sums<T> G = few(run, first, over_l, m, w.gram);
  run.pass(Pass<T>{{a.Y, a.l}, m, G.partials, G.count, nullptr, {w.Q, a.l}, second, nullptr, w.inverse_1, w.info + kPassY},
           over_l);
  // Z' = Z R^-1
  G = few(run, second, over_l, m, w.gram);
  run.pass(Pass<T>{{a.Z, a.q}, m, G.partials, G.count, w.inverse_1, {w.Z, a.q}, first, nullptr, w.inverse_2, w.info + kPassZ},
           over_q);
  // Z' = P T, but for the inverse of the second pass.
  G = few(run, first, over_q, m, w.gram);
  run.pass(Pass<T>{{w.Z, a.q}, m, G.partials, G.count, nullptr, {w.P, a.q}, second, w.R, nullptr, w.info + kPassP}, over_q);
  G = few(run, second, over_q, m, w.gram);
  run.solve(Solve<T>{m, t, G.partials, G.count, w.R, w.inverse_2, w.work, true, a.S, w.W_A, w.W_B, w.info});
  run.apply(Apply<T>{{w.Q, a.l}, m, w.W_A, t, a.A, t, 1, nullptr}, over_l);
  run.apply(Apply<T>{{w.P, a.q}, m, w.W_B, t, a.B, 1, a.q, first}, over_q);
  G = few(run, first, over_q, t, w.gram);
  run.judge(G.partials, G.count, t, w.info, a.status);
}

}  // namespace lip_fast
