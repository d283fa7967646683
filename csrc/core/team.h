// A team: the threads that work on one small problem together. The algorithms of this folder are templates over
// it, so that what runs on a CUDA block is the same source that runs, and is tested, on one CPU thread.
//
//   int rank(), size()     this thread among all
//   void sync()            every thread has come here and sees what the others wrote
//   T max(T), T sum(T)     over all threads, the same for each, in a fixed order
//   kLanes                 threads of a group: neighbours in rank that share one pair of columns
//   T lane_sum(T)          over the threads of this thread's group, the same for each
//
// sync, max and sum are called by all threads or none, lane_sum by all threads of a group or none.
#pragma once

#include "core/config.h"

namespace lip_fast {

/// One CPU thread.
struct SerialTeam {
  static constexpr int kLanes = 1;
  LIP_FAST_FN int rank() const { return 0; }
  LIP_FAST_FN int size() const { return 1; }
  LIP_FAST_FN void sync() const {}
  template <class T>
  LIP_FAST_FN T max(T value) const {
    return value;
  }
  template <class T>
  LIP_FAST_FN T sum(T value) const {
    return value;
  }
  template <class T>
  LIP_FAST_FN T lane_sum(T value) const {
    return value;
  }
};

}  // namespace lip_fast
