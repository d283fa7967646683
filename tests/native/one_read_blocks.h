// The blocks of the one-read kernels in the emulator, and memory that shows what is written beyond its ends.
#pragma once

#include "core/one_read.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "emulator.h"

using lip_fast::Pair;
using lip_fast::Quad;
using lip_fast::Signal;

// With clusters: sends carry their signal.
class ClusterBlock : public emulator::Thread {
 public:
  using Thread::Thread;
  Quad load4(const float* p, int line = __builtin_LINE()) const { return Thread::load<Quad>(p, line); }
  Pair load2(const float* p, int line = __builtin_LINE()) const { return Thread::load<Pair>(p, line); }
  float load(const float* p, int line = -__builtin_LINE()) const { return Thread::load<float>(p, line); }
  void store4(float* p, const Quad& v, int line = __builtin_LINE()) const { Thread::store(p, v, line); }
  void store2(float* p, const Pair& v, int line = __builtin_LINE()) const { Thread::store(p, v, line); }
  void store(float* p, float v, int line = -__builtin_LINE()) const { Thread::store(p, v, line); }
  void put4(float* p, const Quad& v) const {
    if (reinterpret_cast<std::uintptr_t>(p) % sizeof v != 0) emulator::Machine::fail("a misaligned write to memory");
    std::memcpy(p, &v, sizeof v);
  }
  void init_signal(Signal* s) const { Thread::init_signal(s, 1); }
  void send4(float* p, int rank, const Quad& v, Signal* s) const { send(p, rank, {v.x, v.y, v.z, v.w}, s); }
  void expect(Signal* s, int bytes) const {
    if (thread() == 0) arrive_signal(s, bytes);
  }
  void await(Signal* s, int parity) const { await_signal(s, parity); }
};

// Without: what is sent is written, and each projector says when it has sent all.
class PlainBlock : public ClusterBlock {
 public:
  using ClusterBlock::ClusterBlock;
  void init_signal(Signal* s) const { Thread::init_signal(s, lip_fast::kRoleThreads); }
  void send4(float* p, int, const Quad& v, Signal*) const { Thread::store(p, v, 0); }
  void expect(Signal* s, int) const { arrive_signal(s, 0); }
};

constexpr std::size_t kGuard = 64;
constexpr float kUntouched = -12345.0f;

inline std::vector<float> guarded(std::size_t count) {
  std::vector<float> values(count + 2 * kGuard, kUntouched);
  std::fill(values.begin() + kGuard, values.end() - kGuard, emulator::poison());
  return values;
}
