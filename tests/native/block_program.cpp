// The stages of a warm SVD on emulated blocks, as kernels would run them, and on one thread beside it.
//
//   l q m t threads omissions    in: V (q, m), Y, Z (float, columns)
//
// Runs every stage, the small SVD and the refit in several orders of the threads, with poisoned shared memory; the
// results must agree to the bit. Then leaves out barriers one by one. Prints whether the orders agreed, the status, the
// largest differences to the results of one thread, and how many left-out barriers were noticed.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "core/refit.h"
#include "core/team.h"
#include "core/warm_pipeline.h"
#include "cpu/launcher.h"
#include "emulator.h"

using namespace lip_fast;

namespace {

std::vector<float> read(std::size_t count) {
  std::vector<float> values(count);
  if (std::fread(values.data(), sizeof(float), count, stdin) != count) std::exit(3);
  return values;
}

std::vector<float> poisoned(std::int64_t count) {
  return std::vector<float>(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

struct Schedule {
  int threads;
  emulator::Order order;
  std::uint64_t seed;
  long omitted;  // the barrier of this number, counted by each thread for itself, is left out; -1 for none
};

/// The team of lip_fast::cuda::BlockTeam: groups of eight that sum in the order of shuffles, each for itself.
class Team : public emulator::Thread {
 public:
  using Thread::Thread;
  static inline long omitted = -1;
  static inline std::vector<double> slots;

  void sync() {
    if (syncs_++ != omitted) Thread::sync();
  }
  template <class T>
  T lane_sum(T value) {
    const int group = kFirstBarrier + rank() / kLanes;
    for (int step = kLanes / 2; step > 0; step /= 2) {
      slots[rank()] = value;
      sync_part<kLanes>(group);
      const T other = static_cast<T>(slots[rank() ^ step]);
      sync_part<kLanes>(group);
      value += other;
    }
    return value;
  }

 private:
  static constexpr int kFirstBarrier = 100;  // apart from those that kernels name
  long syncs_ = 0;
};

/// Emulated blocks one after another, each with shared memory of its own.
class BlockLauncher {
 public:
  explicit BlockLauncher(const Schedule& schedule) : schedule_(schedule) {}
  int blocks(std::int64_t rows, int m) const { return cpu::SerialLauncher<float>().blocks(rows, m); }
  void gram(const Tall<const float>& X, int m, float* partials, int blocks) {
    grid(blocks, tile_size(m), [&](auto& team, int b, float* shared) {
      gram_block(team, X, m, partials, b, blocks, shared);
    });
  }
  void reduce(const float* partials, int count, int m, float* sum) {
    SerialTeam team;
    sum_partials(team, partials, count, m, sum, m);
  }
  void pass(const Pass<float>& a, int blocks) {
    grid(blocks, pass_shared(a.m), [&](auto& team, int b, float* shared) { pass_block(team, a, b, blocks, shared); });
  }
  void apply(const Apply<float>& a, int blocks) {
    grid(blocks, apply_shared(a.m), [&](auto& team, int b, float* shared) { apply_block(team, a, b, blocks, shared); });
  }
  void solve(const Solve<float>& a) {
    grid(1, solve_shared(a.m, a.spacious), [&](auto& team, int, float* shared) { solve_block(team, a, shared); });
  }
  void small_svd(const SmallSvd<float>& a) {
    grid(1, small_svd_shared(a.m, a.spacious), [&](auto& team, int, float* shared) { small_svd_block(team, a, shared); });
  }
  void refit(const Refit<float>& a) {
    grid(1, 0, [&](auto& team, int, float*) { lip_fast::refit(team, a); });
  }
  void judge(const float* G, int count, int t, const int* info, std::int64_t* status) {
    grid(1, 0, [&](auto& team, int, float*) { judge_block(team, G, count, t, info, status); });
  }

 private:
  template <class Body>
  void grid(int blocks, int values, const Body& body) {
    emulator::Options options;
    options.order = schedule_.order;
    options.seed = schedule_.seed;
    Team::omitted = schedule_.omitted;
    Team::slots.assign(static_cast<std::size_t>(schedule_.threads), 0.0);
    const auto report = emulator::launch<Team>(options, blocks, 1, schedule_.threads, sizeof(float) * values,
                                               [&](Team& team) { body(team, team.cluster(), team.shared()); });
    if (!report.broken.empty() && schedule_.omitted < 0) emulator::Machine::fail(report.broken.c_str());
  }
  Schedule schedule_;
};

struct Result {
  std::vector<float> V, A, S, B;
  std::int64_t status;
  std::vector<float> small_U, small_S, small_V, refitted;

  bool same(const Result& other) const {
    const auto equal = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return equal(V, other.V) && equal(A, other.A) && equal(S, other.S) && equal(B, other.B) && status == other.status &&
           equal(small_U, other.small_U) && equal(small_S, other.small_S) && equal(small_V, other.small_V) &&
           equal(refitted, other.refitted);
  }
};

/// One thread, with what only this program launches.
class OneThread : public cpu::SerialLauncher<float> {
 public:
  void small_svd(const SmallSvd<float>& a) {
    SerialTeam team;
    auto shared = poisoned(small_svd_shared(a.m, a.spacious));
    small_svd_block(team, a, shared.data());
  }
  void refit(const Refit<float>& a) {
    SerialTeam team;
    lip_fast::refit(team, a);
  }
};

template <class Launcher>
Result run(Launcher& launcher, std::int64_t l, std::int64_t q, int m, int t, const std::vector<float>& V,
           const std::vector<float>& Y, const std::vector<float>& Z) {
  Result result{V, poisoned(l * t), poisoned(t), poisoned(q * t), -7, poisoned(m * m), poisoned(m), poisoned(m * m),
                poisoned(t)};
  auto workspace = poisoned(warm_workspace<float>(launcher, l, q, m));
  orthonormal_start(launcher, result.V.data(), l, q, m, workspace.data());
  workspace = poisoned(static_cast<std::int64_t>(workspace.size()));
  lip_fast::warm_svd(launcher, WarmSvd<float>{l, q, m, t, Y.data(), Z.data(), result.A.data(), result.S.data(),
                                              result.B.data(), &result.status, workspace.data()});
  // Any matrix will do: the first entries of V, well apart from singular ones. Without room for a second buffer.
  std::vector<float> square(V.begin(), V.begin() + m * m);
  for (int i = 0; i < m; ++i) square[i * m + i] += 2.0f;
  auto work = poisoned(m * m);
  std::int64_t sweeps = -7, small_status = -7;
  launcher.small_svd(SmallSvd<float>{square.data(), nullptr, result.small_U.data(), result.small_S.data(),
                                     result.small_V.data(), work.data(), m, false, &sweeps, &small_status});
  if (small_status != kSound) result.small_S[0] = std::numeric_limits<float>::infinity();
  const std::vector<double> numerator(V.begin(), V.begin() + t);
  std::vector<double> denominator(static_cast<std::size_t>(t), 0.3);
  const double energy = 0.3 * t;
  const bool ok = true;
  bool sound = false;
  std::int64_t clipped = -7;
  launcher.refit(Refit<float>{result.S.data(), numerator.data(), denominator.data(), &energy, &ok, t, 1, t - 1, 1e-6, true,
                              result.refitted.data(), &sound, &clipped});
  result.refitted[t - 1] = sound ? static_cast<float>(clipped) : -1.0f;
  return result;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(static_cast<double>(a[i]) - b[i]);
    worst = std::isfinite(d) ? std::max(worst, d) : std::numeric_limits<double>::infinity();
  }
  return worst;
}

}  // namespace

int main(int count, char** argument) {
  if (count != 7) return 2;
  const std::int64_t l = std::atoll(argument[1]), q = std::atoll(argument[2]);
  const int m = std::atoi(argument[3]), t = std::atoi(argument[4]), threads = std::atoi(argument[5]);
  const auto V = read(q * m), Y = read(l * m), Z = read(q * m);
  const auto on_blocks = [&](emulator::Order order, std::uint64_t seed, long omitted) {
    BlockLauncher launcher({threads, order, seed, omitted});
    return run(launcher, l, q, m, t, V, Y, Z);
  };
  const Result forward = on_blocks(emulator::Order::forward, 0, -1);
  bool same = forward.same(on_blocks(emulator::Order::backward, 0, -1));
  for (std::uint64_t seed = 1; seed <= 3; ++seed) same = same && forward.same(on_blocks(emulator::Order::random, seed, -1));
  OneThread serial;
  const Result alone = run(serial, l, q, m, t, V, Y, Z);
  int noticed = 0;
  const int omissions = std::atoi(argument[6]);
  for (int n = 0; n < omissions; ++n) {
    noticed += !on_blocks(emulator::Order::forward, 0, n).same(forward) ||
               !on_blocks(emulator::Order::backward, 0, n).same(forward);
  }
  std::printf("%d %ld %.3g %.3g %.3g %.3g %.3g %.3g %d\n", same, static_cast<long>(forward.status),
              difference(forward.V, alone.V), difference(forward.A, alone.A), difference(forward.S, alone.S),
              difference(forward.B, alone.B), difference(forward.small_S, alone.small_S),
              difference(forward.refitted, alone.refitted), noticed);
  return 0;
}
