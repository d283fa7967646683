// The threads of a CUDA block as fibers on one CPU thread: they take turns in an order of one's choice, and change only
// at barriers. What depends on a barrier that is not there comes out differently in another order.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#error "stacks of fibers are not known to AddressSanitizer"
#endif

namespace lip_fast::test {

/// Turns: first to last, last to first, or shuffled anew each round.
enum class Order { forward, backward, shuffled };

class Fibers {
 public:
  /// Runs ``body(rank)`` on ``count`` fibers to the end.
  void run(int count, Order order, unsigned seed, const std::function<void(int)>& body) {
    body_ = &body;
    fibers_.clear();
    for (int rank = 0; rank < count; ++rank) {
      auto fiber = std::make_unique<Fiber>();
      fiber->stack.resize(kStack);
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.data();
      fiber->context.uc_stack.ss_size = fiber->stack.size();
      fiber->context.uc_link = &scheduler_;
      fibers_.push_back(std::move(fiber));
    }
    current_instance() = this;
    for (auto& fiber : fibers_) makecontext(&fiber->context, &Fibers::enter, 0);
    std::mt19937 random(seed);
    std::vector<int> turns(count);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == Order::backward) std::reverse(turns.begin(), turns.end());
    for (int left = count; left > 0;) {
      if (order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), random);
      bool moved = false;
      for (const int rank : turns) {
        Fiber& fiber = *fibers_[rank];
        if (fiber.done || (fiber.waits != nullptr && *fiber.waits == fiber.generation)) continue;
        fiber.waits = nullptr;
        current_ = rank;
        moved = true;
        swapcontext(&scheduler_, &fiber.context);
        left -= fiber.done;
      }
      if (!moved) {
        std::fputs("deadlock: some threads wait at a barrier that others do not reach\n", stderr);
        std::exit(4);
      }
    }
  }

  /// Counts who has come; the last one opens it for all.
  struct Barrier {
    int expected = 0, arrived = 0;
    unsigned generation = 0;
  };

  void wait(Barrier& barrier) {
    if (++barrier.arrived == barrier.expected) {
      barrier.arrived = 0;
      ++barrier.generation;
      // The last one, too, gives the others a turn first.
    } else {
      fibers_[current_]->waits = &barrier.generation;
      fibers_[current_]->generation = barrier.generation;
    }
    Fiber& self = *fibers_[current_];
    swapcontext(&self.context, &scheduler_);
  }

 private:
  static constexpr std::size_t kStack = 128 * 1024;
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    const unsigned* waits = nullptr;
    unsigned generation = 0;
    bool done = false;
  };
  static Fibers*& current_instance() {
    static Fibers* instance = nullptr;
    return instance;
  }
  static void enter() {
    Fibers& self = *current_instance();
    const int rank = self.current_;
    (*self.body_)(rank);
    self.fibers_[rank]->done = true;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  ucontext_t scheduler_;
  const std::function<void(int)>* body_ = nullptr;
  int current_ = 0;
};

/// What the threads of one block share beside their memory.
struct Block {
  Fibers fibers;
  Fibers::Barrier all;
  std::vector<Fibers::Barrier> groups;
  std::vector<double> slots;
  int size = 0;
  /// The barrier of this number, counted by each thread for itself, is left out; -1 for none.
  long omitted = -1;
};

/// A team over them, with the arithmetic of lip_fast::cuda::BlockTeam: sums in the order of shuffles.
class FiberTeam {
 public:
  static constexpr int kLanes = 8;

  FiberTeam(Block& block, int rank) : block_(&block), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const { return block_->size; }
  void sync() {
    if (syncs_++ != block_->omitted) block_->fibers.wait(block_->all);
  }
  template <class T>
  T max(T value) {
    return over_all(value, [](T a, T b) { return a < b ? b : a; });
  }
  template <class T>
  T sum(T value) {
    return over_all(value, [](T a, T b) { return a + b; });
  }
  template <class T>
  T lane_sum(T value) {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      Fibers::Barrier& group = block_->groups[rank_ / kLanes];
      block_->slots[rank_] = value;
      block_->fibers.wait(group);
      const T other = static_cast<T>(block_->slots[rank_ ^ step]);
      block_->fibers.wait(group);
      value += other;
    }
    return value;
  }

 private:
  template <class T, class Join>
  T over_all(T value, Join join) {
    block_->slots[rank_] = value;
    block_->fibers.wait(block_->all);
    T joined = static_cast<T>(block_->slots[0]);
    for (int rank = 1; rank < size(); ++rank) joined = join(joined, static_cast<T>(block_->slots[rank]));
    block_->fibers.wait(block_->all);
    return joined;
  }
  Block* block_;
  int rank_;
  long syncs_ = 0;
};

/// Runs ``body(team)`` on a block of ``threads``, a multiple of 8.
template <class Body>
void run_block(int threads, Order order, unsigned seed, long omitted, const Body& body) {
  Block block;
  block.size = threads;
  block.omitted = omitted;
  block.all.expected = threads;
  block.groups.resize(threads / FiberTeam::kLanes);
  for (auto& group : block.groups) group.expected = FiberTeam::kLanes;
  block.slots.resize(threads);
  block.fibers.run(threads, order, seed, [&](int rank) {
    FiberTeam team(block, rank);
    body(team);
  });
}

}  // namespace lip_fast::test
