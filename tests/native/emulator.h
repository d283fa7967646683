// Runs a CUDA kernel written as a template over its block on one CPU thread, to find what is wrong with its arithmetic
// and its synchronisation where there is no GPU.
//
// Each CUDA thread is a fiber that runs until it waits for others. What a GPU leaves open is made as bad as it can be:
//   - shared memory starts as NaN, and so is the target of a copy or a send until the data arrive;
//   - copies arrive when they are waited for, and sends as late as possible, at once, or at random;
//   - threads run in the order of their number, in the reverse order, or in random order.
// A kernel that is right gives the same bits in all these orders. Beyond that, with ``races`` every access to shared
// memory is checked: two accesses of different threads to one word, one of them a write, need a chain of barriers,
// signals or sends between them.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

namespace emulator {

enum class Order { forward, backward, random };

/// What to do, and what to do wrong.
struct Options {
  Order order = Order::forward;
  std::uint64_t seed = 0;
  bool races = false;
  bool banks = false;
  // Each leaves out one kind of synchronisation: a test that does not notice is worth nothing.
  int skipped_barrier = -1;  // named barrier of a block
  bool skip_copy_wait = false;
  bool skip_signal = false;
};

/// What went wrong, for the test to see; the run goes on.
struct Report {
  std::int64_t races = 0;
  std::string first_race;
  std::string broken;  // what was found that no right kernel does, or empty
  std::int64_t ideal_wavefronts = 0, wavefronts = 0;
  std::map<int, std::pair<std::int64_t, std::int64_t>> banks;  // by source line: ideal, real
};

constexpr int kWarp = 32;

inline float poison() { return std::numeric_limits<float>::quiet_NaN(); }

class Machine;

/// Counts arrivals; its clock is what those who have arrived had seen.
struct Gate {
  int count = 0;
  std::uint64_t passed = 0;
  std::vector<int> waiting;
  std::vector<std::uint32_t> arriving, released;
};

/// A word of shared memory as the race check sees it.
struct Word {
  int writer = -1;
  std::uint32_t written = 0;
  std::vector<std::pair<int, std::uint32_t>> reads;  // since the last write
};

/// A signal, as an mbarrier: a phase ends when its arrival and all its bytes have come.
struct SignalState {
  int expected = 0, pending = 0;
  std::int64_t bytes = 0;
  Gate gate;
};

struct Block {
  std::vector<float> shared;
  std::vector<Word> words;
  std::vector<char> reserved;  // for signals
  std::map<int, Gate> barriers;
  std::map<const void*, SignalState> signals;
  Gate team;
  std::vector<double> exchange;
};

struct Copy {
  float* to;
  const float* from;
  int bytes;
};

/// One access to shared memory, for counting bank conflicts.
struct Access {
  int line, offset, words;
};

struct Fiber {
  jmp_buf context;
  ucontext_t first;
  bool started = false, finished = false;
  std::vector<std::vector<Copy>> groups{1};
  std::vector<std::uint32_t> clock;
  std::vector<Access> accesses;
};

struct WarpState {
  struct Operands {
    float c[4], a[4], b[2];
  };
  Operands lane[kWarp];
  Gate gate;
};

struct Send {
  int block;
  float* to;
  float values[4];
  const void* signal;
  std::vector<std::uint32_t> clock;
};

/// A cluster of blocks, its threads, and what is under way between them.
class Machine {
 public:
  Machine(const Options& options, int cluster_size, int threads, std::size_t shared_bytes)
      : options_(options), cluster_(cluster_size), threads_(threads), random_(options.seed) {
    const std::size_t floats = shared_bytes / sizeof(float);
    blocks_.resize(cluster_);
    fibers_.resize(static_cast<std::size_t>(cluster_) * threads_);
    warps_.resize(fibers_.size() / kWarp);
    for (Block& block : blocks_) {
      block.shared.assign(floats, poison());
      block.reserved.assign(floats, 0);
      if (options.races) block.words.resize(floats);
      block.exchange.resize(threads_);
    }
    stacks_ = static_cast<char*>(mmap(nullptr, fibers_.size() * kStack, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks_ == MAP_FAILED) std::abort();
  }
  Machine(const Machine&) = delete;
  ~Machine() { munmap(stacks_, fibers_.size() * kStack); }

  /// Runs ``body`` (thread number within the cluster) in every thread.
  void run(const std::function<void(int)>& body, Report* report) {
    body_ = &body;
    report_ = report;
    for (int i = 0; i < total(); ++i) {
      if (options_.races) fibers_[i].clock.assign(total(), 0);
      if (options_.races) fibers_[i].clock[i] = 1;
      wake(i);
    }
    for (;;) {
      const bool hurry = options_.order == Order::forward || (options_.order == Order::random && random_() % 64 == 0);
      if (!sends_.empty() && (hurry || ready_.empty())) {
        deliver();
        continue;
      }
      if (ready_.empty()) break;
      const int next = ready_.top().second;
      ready_.pop();
      resume(next);
    }
    for (const Fiber& fiber : fibers_) {
      if (!fiber.finished) complain("threads wait for each other, or for what nobody sends");
      for (const auto& group : fiber.groups) {
        if (fiber.finished && !group.empty()) complain("a thread ended before its copies had arrived");
      }
    }
    count_banks();
  }

  int total() const { return static_cast<int>(fibers_.size()); }
  int threads() const { return threads_; }
  int cluster_size() const { return cluster_; }
  const Options& options() const { return options_; }
  Block& block_of(int id) { return blocks_[id / threads_]; }
  Block& block(int rank) { return blocks_[rank]; }
  Fiber& fiber(int id) { return fibers_[id]; }
  WarpState& warp_of(int id) { return warps_[id / kWarp]; }
  Gate& cluster_gate() { return cluster_gate_; }

  /// Arrives at a gate that opens when ``expected`` have.
  void arrive(int id, Gate& gate, int expected) {
    release(id, gate);
    if (++gate.count == expected) open(gate);
  }
  /// Waits until a gate has opened more than ``passed`` times.
  void wait(int id, Gate& gate, std::uint64_t passed) {
    sleep(id, gate, passed);
    if (options_.races) join(fibers_[id].clock, gate.released);
  }
  /// The same for what orders nothing in memory.
  void sleep(int id, Gate& gate, std::uint64_t passed) {
    while (gate.passed <= passed) {
      gate.waiting.push_back(id);
      yield(id);
    }
  }
  void wake_all(Gate& gate) {
    gate.count = 0;
    ++gate.passed;
    for (const int id : gate.waiting) wake(id);
    gate.waiting.clear();
  }
  void pass(int id, Gate& gate, int expected) {
    const std::uint64_t passed = gate.passed;
    arrive(id, gate, expected);
    wait(id, gate, passed);
  }

  void send(Send&& message, int sender) {
    // The words may change at any time from now on.
    for (int i = 0; i < 4; ++i) {
      touch(sender, message.block, message.to + i, true, 0);
      message.to[i] = poison();
    }
    if (options_.races) {
      message.clock = fibers_[sender].clock;
      ++fibers_[sender].clock[sender];
    }
    sends_.push_back(std::move(message));
  }
  void arrive_signal(int id, int rank, const void* s, std::int64_t bytes) {
    SignalState& state = signal(rank, s);
    --state.pending;
    state.bytes += bytes;
    release(id, state.gate);
    settle(state);
  }
  SignalState& signal(int rank, const void* s) {
    const auto found = blocks_[rank].signals.find(s);
    if (found == blocks_[rank].signals.end()) fail("a signal is used before it was made");
    return found->second;
  }

  /// An access of a thread to shared memory of the block ``rank``.
  void touch(int id, int rank, const float* p, bool write, int line) {
    Block& block = blocks_[rank];
    const std::ptrdiff_t offset = p - block.shared.data();
    if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(block.shared.size())) fail("outside of shared memory");
    if (block.reserved[offset]) fail("the words of a signal are used for something else");
    if (!options_.races) return;
    Word& word = block.words[offset];
    const std::vector<std::uint32_t>& clock = fibers_[id].clock;
    bool race = word.writer >= 0 && word.writer != id && clock[word.writer] < word.written;
    if (write) {
      for (const auto& [reader, when] : word.reads) race = race || (reader != id && clock[reader] < when);
      word.reads.clear();
      word.writer = id;
      word.written = clock[id];
    } else {
      word.reads.emplace_back(id, clock[id]);
    }
    if (race && report_->races++ == 0) {
      report_->first_race = std::string(write ? "write" : "read") + " of thread " + std::to_string(id) + " at word " +
                            std::to_string(offset) + " of block " + std::to_string(rank) + ", line " +
                            std::to_string(line);
    }
  }
  void record(int id, int line, const float* p, int words) {
    if (!options_.banks) return;
    fibers_[id].accesses.push_back({line, static_cast<int>(p - block_of(id).shared.data()), words});
  }

  void complain(const char* what) {
    if (report_->broken.empty()) report_->broken = what;
  }
  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::exit(3);
  }

 private:
  static constexpr std::size_t kStack = 64 * 1024;
  using Key = std::pair<std::uint64_t, int>;

  void wake(int id) {
    std::uint64_t key = static_cast<std::uint64_t>(id);
    if (options_.order == Order::backward) key = static_cast<std::uint64_t>(total() - id);
    if (options_.order == Order::random) key = random_();
    ready_.emplace(key, id);
  }
  void release(int id, Gate& gate) {
    if (!options_.races) return;
    join(gate.arriving, fibers_[id].clock);
    ++fibers_[id].clock[id];
  }
  void open(Gate& gate) {
    if (options_.races) {
      gate.released.swap(gate.arriving);
      gate.arriving.clear();
    }
    wake_all(gate);
  }
  static void join(std::vector<std::uint32_t>& into, const std::vector<std::uint32_t>& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) into[i] = into[i] < from[i] ? from[i] : into[i];
  }
  void settle(SignalState& state) {
    if (state.pending != 0 || state.bytes != 0) return;
    state.pending = state.expected;
    open(state.gate);
  }
  void deliver() {
    std::size_t which = 0;
    if (options_.order == Order::backward) which = sends_.size() - 1;
    if (options_.order == Order::random) which = random_() % sends_.size();
    std::swap(sends_[which], sends_.back());
    const Send message = std::move(sends_.back());
    sends_.pop_back();
    std::memcpy(message.to, message.values, sizeof message.values);
    SignalState& state = signal(message.block, message.signal);
    state.bytes -= static_cast<std::int64_t>(sizeof message.values);
    if (options_.races) join(state.gate.arriving, message.clock);
    settle(state);
  }

  // The first switch to a fiber goes through ucontext, the others by longjmp, which spares the system calls.
  void resume(int id) {
    current_ = id;
    if (_setjmp(main_) != 0) return;
    Fiber& fiber = fibers_[id];
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = stacks_ + static_cast<std::size_t>(id) * kStack;
    fiber.first.uc_stack.ss_size = kStack;
    fiber.first.uc_link = nullptr;
    entering() = this;
    makecontext(&fiber.first, &Machine::enter, 0);
    setcontext(&fiber.first);
  }
  void yield(int id) {
    if (_setjmp(fibers_[id].context) == 0) _longjmp(main_, 1);
  }
  static Machine*& entering() {
    static Machine* machine = nullptr;
    return machine;
  }
  static void enter() {
    Machine* const machine = entering();
    const int id = machine->current_;
    (*machine->body_)(id);
    machine->fibers_[id].finished = true;
    _longjmp(machine->main_, 1);
  }

  void count_banks() {
    if (!options_.banks) return;
    // The k-th access of each lane at a line belongs to one instruction.
    for (int warp = 0; warp < total() / kWarp; ++warp) {
      std::map<std::pair<int, int>, std::vector<std::pair<int, Access>>> instructions;
      for (int lane = 0; lane < kWarp; ++lane) {
        std::map<int, int> seen;
        for (const Access& access : fibers_[warp * kWarp + lane].accesses) {
          instructions[{access.line, seen[access.line]++}].emplace_back(lane, access);
        }
      }
      for (const auto& [key, lanes] : instructions) {
        const int words = lanes[0].second.words, at_once = kWarp / words;
        for (int first = 0; first < kWarp; first += at_once) {
          std::map<int, std::map<int, bool>> banks;
          for (const auto& [lane, access] : lanes) {
            if (lane < first || lane >= first + at_once) continue;
            for (int i = 0; i < words; ++i) banks[(access.offset + i) % 32][access.offset + i] = true;
          }
          std::size_t deepest = 0;
          for (const auto& [bank, distinct] : banks) deepest = std::max(deepest, distinct.size());
          if (deepest == 0) continue;
          auto& [ideal, real] = report_->banks[key.first];
          ideal += 1;
          real += static_cast<std::int64_t>(deepest);
          report_->ideal_wavefronts += 1;
          report_->wavefronts += static_cast<std::int64_t>(deepest);
        }
      }
    }
  }

  Options options_;
  int cluster_, threads_;
  std::mt19937_64 random_;
  std::vector<Block> blocks_;
  std::vector<Fiber> fibers_;
  std::vector<WarpState> warps_;
  Gate cluster_gate_;
  std::vector<Send> sends_;
  std::priority_queue<Key, std::vector<Key>, std::greater<Key>> ready_;
  const std::function<void(int)>* body_ = nullptr;
  Report* report_ = nullptr;
  char* stacks_ = nullptr;
  jmp_buf main_;
  int current_ = 0;
};

/// What a thread sees of the machine. Kernels of their own kind build on it.
class Thread {
 public:
  Thread(Machine& machine, int id, int cluster, int clusters)
      : machine_(machine), id_(id), cluster_(cluster), clusters_(clusters) {}

  int thread() const { return id_ % machine_.threads(); }
  int cluster_rank() const { return id_ / machine_.threads(); }
  int cluster_size() const { return machine_.cluster_size(); }
  int cluster() const { return cluster_; }
  int clusters() const { return clusters_; }
  float* shared() const { return machine_.block_of(id_).shared.data(); }

  // The threads of a block as a team (core/team.h).
  static constexpr int kLanes = 8;
  int rank() const { return thread(); }
  int size() const { return machine_.threads(); }
  void sync() const {
    if (machine_.options().skipped_barrier == 0) return;
    machine_.pass(id_, machine_.block_of(id_).team, size());
  }
  template <class T>
  T max(T value) const {
    return combine(value, 0, size(), [](T a, T b) { return a < b ? b : a; });
  }
  template <class T>
  T sum(T value) const {
    return combine(value, 0, size(), [](T a, T b) { return a + b; });
  }
  template <class T>
  T lane_sum(T value) const {
    return combine(value, thread() / kLanes * kLanes, kLanes, [](T a, T b) { return a + b; });
  }

  template <int Threads>
  void sync_part(int barrier) const {
    if (machine_.options().skipped_barrier == barrier) return;
    machine_.pass(id_, machine_.block_of(id_).barriers[barrier], Threads);
  }
  template <int Threads>
  void arrive_part(int barrier) const {
    if (machine_.options().skipped_barrier == barrier) return;
    machine_.arrive(id_, machine_.block_of(id_).barriers[barrier], Threads);
  }
  void sync_cluster() const { machine_.pass(id_, machine_.cluster_gate(), machine_.total()); }

  /// Reads and writes of shared memory that are checked and counted; ``line`` names the place in the source.
  template <class Vector>
  Vector load(const float* p, int line) const {
    constexpr int kWords = sizeof(Vector) / sizeof(float);
    align<Vector>(p);
    for (int i = 0; i < kWords; ++i) machine_.touch(id_, cluster_rank(), p + i, false, line);
    machine_.record(id_, line, p, kWords);
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class Vector>
  void store(float* p, const Vector& v, int line) const {
    constexpr int kWords = sizeof(Vector) / sizeof(float);
    align<Vector>(p);
    for (int i = 0; i < kWords; ++i) machine_.touch(id_, cluster_rank(), p + i, true, line);
    machine_.record(id_, line, p, kWords);
    std::memcpy(p, &v, sizeof v);
  }

  void copy_async(float* to, const float* from, int bytes) const {
    if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) Machine::fail("a copy from a misaligned address");
    for (int i = 0; i < 4; ++i) {
      machine_.touch(id_, cluster_rank(), to + i, true, 0);
      to[i] = poison();
    }
    machine_.fiber(id_).groups.back().push_back({to, from, bytes});
  }
  void copy_commit() const { machine_.fiber(id_).groups.emplace_back(); }
  template <int N>
  void copy_wait() const {
    if (machine_.options().skip_copy_wait) return;
    auto& groups = machine_.fiber(id_).groups;
    while (groups.size() > N + 1) {
      for (const Copy& copy : groups.front()) {
        float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (copy.bytes > 0) std::memcpy(values, copy.from, static_cast<std::size_t>(copy.bytes));
        for (int i = 0; i < 4; ++i) machine_.touch(id_, cluster_rank(), copy.to + i, true, 0);
        std::memcpy(copy.to, values, sizeof values);
      }
      groups.erase(groups.begin());
    }
  }

  void init_signal(const void* s, int arrivals) const {
    if (reinterpret_cast<std::uintptr_t>(s) % 8 != 0) Machine::fail("a misaligned signal");
    Block& block = machine_.block_of(id_);
    const std::ptrdiff_t offset = static_cast<const float*>(s) - block.shared.data();
    const auto size = static_cast<std::ptrdiff_t>(block.shared.size());
    if (offset < 0 || offset + 2 > size) Machine::fail("a signal outside of shared memory");
    block.reserved[offset] = block.reserved[offset + 1] = 1;
    SignalState& state = block.signals[s];
    state.expected = state.pending = arrivals;
  }
  /// st.async: values and signal are those of the block ``rank``, named by their addresses here.
  void send(float* p, int rank, const float (&v)[4], const void* s) const {
    Block& there = machine_.block(rank);
    const std::ptrdiff_t offset = p - shared();
    const std::ptrdiff_t signal = static_cast<const char*>(s) - reinterpret_cast<const char*>(shared());
    Send message{rank, there.shared.data() + offset, {v[0], v[1], v[2], v[3]},
                 reinterpret_cast<const char*>(there.shared.data()) + signal, {}};
    machine_.send(std::move(message), id_);
  }
  void arrive_signal(const void* s, std::int64_t bytes) const {
    machine_.arrive_signal(id_, cluster_rank(), s, bytes);
  }
  /// Until the phase of this parity is over, as mbarrier.try_wait.parity: a waiter that is late by two phases hangs.
  void await_signal(const void* s, int parity) const {
    if (machine_.options().skip_signal) return;
    SignalState& state = machine_.signal(cluster_rank(), s);
    while (static_cast<int>(state.gate.passed % 2) == parity) machine_.sleep(id_, state.gate, state.gate.passed);
    if (state.gate.passed > 0) machine_.wait(id_, state.gate, state.gate.passed - 1);
  }

  /// mma.m16n8k8: lane 4 g + t holds a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4); b(t, g), b(t + 4, g); and
  /// c(g, 2 t), c(g, 2 t + 1), c(g + 8, 2 t), c(g + 8, 2 t + 1). Of the factors, the low 13 bits are dropped.
  void mma(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) const {
    WarpState& warp = machine_.warp_of(id_);
    WarpState::Operands& own = warp.lane[id_ % kWarp];
    own = {{c[0], c[1], c[2], c[3]}, {tf32(a0), tf32(a1), tf32(a2), tf32(a3)}, {tf32(b0), tf32(b1)}};
    const std::uint64_t passed = warp.gate.passed;
    if (++warp.gate.count == kWarp) {
      multiply(warp);
      machine_.wake_all(warp.gate);
    } else {
      machine_.sleep(id_, warp.gate, passed);
    }
    std::memcpy(c, own.c, sizeof own.c);
  }

 private:
  template <class Vector>
  static void align(const float* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % sizeof(Vector) != 0) Machine::fail("a misaligned access");
  }
  static float tf32(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0xffffe000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static void multiply(WarpState& warp) {
    float a[16][8], b[8][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const WarpState::Operands& own = warp.lane[lane];
      a[g][t] = own.a[0], a[g + 8][t] = own.a[1], a[g][t + 4] = own.a[2], a[g + 8][t + 4] = own.a[3];
      b[t][g] = own.b[0], b[t + 4][g] = own.b[1];
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        double total = warp.lane[lane].c[i];
        for (int k = 0; k < 8; ++k) total += static_cast<double>(a[row][k]) * b[k][column];
        warp.lane[lane].c[i] = static_cast<float>(total);
      }
    }
  }
  template <class T, class Operation>
  T combine(T value, int first, int count, Operation operation) const {
    Block& block = machine_.block_of(id_);
    block.exchange[thread()] = value;
    pass_team();
    T total = static_cast<T>(block.exchange[first]);
    for (int i = 1; i < count; ++i) total = operation(total, static_cast<T>(block.exchange[first + i]));
    pass_team();
    return total;
  }
  void pass_team() const { machine_.pass(id_, machine_.block_of(id_).team, size()); }

  Machine& machine_;
  int id_, cluster_, clusters_;
};

/// Runs ``kernel`` (called with a block of type Kind) in all threads of all clusters, one cluster after the other.
template <class Kind, class Kernel>
Report launch(const Options& options, int clusters, int cluster_size, int threads, std::size_t shared_bytes,
              Kernel&& kernel) {
  Report report;
  for (int i = 0; i < clusters; ++i) {
    const int cluster = options.order == Order::backward ? clusters - 1 - i : i;
    Options own = options;
    own.seed += static_cast<std::uint64_t>(cluster);
    Machine machine(own, cluster_size, threads, shared_bytes);
    const std::function<void(int)> body = [&](int id) {
      Kind block(machine, id, cluster, clusters);
      kernel(block);
    };
    machine.run(body, &report);
    if (!report.broken.empty()) break;
  }
  return report;
}

}  // namespace emulator
