// Runs the stages of a warm SVD one after another on one thread, block by block: the arithmetic of the GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/team.h"
#include "core/warm_pipeline.h"

namespace lip_fast::cpu {

template <class T>
class SerialLauncher {
 public:
  /// More than kPartials for all but the smallest, so that every stage is taken here too.
  int blocks(std::int64_t rows, int m) const { return static_cast<int>(std::min<std::int64_t>(tiles(rows, m), 12)); }

  void gram(const Tall<const T>& X, int m, T* partials, int blocks) {
    T* const shared = reserve(tile_size(m));
    for (int b = 0; b < blocks; ++b) gram_block(team_, X, m, partials, b, blocks, shared);
  }
  void reduce(const T* partials, int count, int m, T* sum) { sum_partials(team_, partials, count, m, sum, m); }
  void pass(const Pass<T>& a, int blocks) {
    T* const shared = reserve(pass_shared(a.m));
    for (int b = 0; b < blocks; ++b) pass_block(team_, a, b, blocks, shared);
  }
  void apply(const Apply<T>& a, int blocks) {
    T* const shared = reserve(apply_shared(a.m));
    for (int b = 0; b < blocks; ++b) apply_block(team_, a, b, blocks, shared);
  }
  void solve(const Solve<T>& a) { solve_block(team_, a, reserve(solve_shared(a.m, a.spacious))); }
  void judge(const T* G, int count, int t, const int* info, std::int64_t* status) {
    judge_block(team_, G, count, t, info, status);
  }

 private:
  T* reserve(int count) {
    shared_.resize(std::max<std::size_t>(shared_.size(), static_cast<std::size_t>(count)));
    return shared_.data();
  }
  SerialTeam team_;
  std::vector<T> shared_;
};

}  // namespace lip_fast::cpu
