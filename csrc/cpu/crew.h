// Threads that take the stages of a step together.
#pragma once

#include <cstdint>

#include "cpu/inline.h"

namespace lip_fast::cpu {

/// One thread of a crew, as each of them sees it. A stage is divided into shares that depend on nothing but the
/// stage: which thread takes which share changes no bit.
class Crew {
 public:
  Crew(int rank, int size, void (*wait)(void*), void* context) : rank_(rank), size_(size), wait_(wait), context_(context) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Until every thread has come here, and sees what the others wrote.
  void sync() const {
    if (size_ > 1) wait_(context_);
  }

  /// This thread takes the shares from ``begin`` to before ``end`` of ``count``.
  std::int64_t begin(std::int64_t count) const { return count * rank_ / size_; }
  std::int64_t end(std::int64_t count) const { return count * (rank_ + 1) / size_; }

  template <class Work>
  LIP_FAST_INLINE void each(std::int64_t count, Work work) const {
    for (std::int64_t i = begin(count), last = end(count); i < last; ++i) work(i);
    sync();
  }

  template <class Work>
  LIP_FAST_INLINE void one(Work work) const {
    if (rank_ == 0) work();
    sync();
  }

 private:
  int rank_, size_;
  void (*wait_)(void*);
  void* context_;
};

/// Runs ``work`` on at most ``threads`` threads of the OpenMP library that is loaded: torch's own, whose threads wait
/// for work already. One of our own would fight with them for the cores. Where none is loaded, on this thread alone.
void with_crew(int threads, void (*work)(const Crew&, void*), void* argument);

}  // namespace lip_fast::cpu
