// The truncated step of a host on threads of our own, whose barriers a sanitizer knows, from and to arrays without a
// byte to spare: prints a line where the number of threads changes a bit, and what each step says.
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "cpu/sets.h"
#include "cpu/truncated_stages.h"

using namespace lip_fast::cpu;

namespace {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  static void wait(void* context) { static_cast<Barrier*>(context)->wait(); }

 private:
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int round = round_;
    if (++there_ == threads_) {
      there_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }
  std::mutex mutex_;
  std::condition_variable all_;
  int threads_, there_ = 0, round_ = 0;
};

struct Result {
  std::vector<float> M, S, B, A;
  int status;
  bool applied;
};

Result run(std::int64_t l, std::int64_t q, int k, int t, std::int64_t n, bool drop, bool decompose, int threads) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto numbers = [&](std::int64_t count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& value : x) value = normal(random);
    return x;
  };
  Result result{numbers(l * q), std::vector<float>(t), std::vector<float>(q * t), std::vector<float>(decompose ? l * t : 0), 0, false};
  const std::vector<float> basis = numbers(q * t), X = numbers(n * q), bias = numbers(l);
  std::vector<std::int64_t> y(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = i % 7 == 3 ? -100 : static_cast<std::int64_t>(random() % l);
  TruncatedStep a{};
  a.l = l, a.q = q, a.k = k, a.t = t, a.fresh = 8, a.M = result.M.data(), a.m_stride = q, a.basis = basis.data();
  a.seed = 3, a.step = 11, a.drop = drop, a.clip = true, a.tolerance = 1e-7, a.threads = threads;
  a.batch = {X.data(), decompose ? 0 : n, q, y.data(), -100}, a.bias = bias.data();
  a.A = decompose ? result.A.data() : nullptr, a.S = result.S.data(), a.B = result.B.data();
  TruncatedRoom room{};
  std::vector<char> memory(static_cast<std::size_t>(lay_out(room, a, nullptr)) + 64);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  lay_out(room, a, memory.data() + (64 - address % 64) % 64);
  Barrier barrier(threads);
  std::vector<std::thread> crew;
  for (int rank = 0; rank < threads; ++rank) {
    crew.emplace_back([&, rank] { TruncatedStages<4>(a, room, Crew(rank, threads, &Barrier::wait, &barrier)).run(); });
  }
  for (std::thread& thread : crew) thread.join();
  result.status = a.status;
  result.applied = a.applied;
  return result;
}

}  // namespace

int main() {
  struct Shape {
    std::int64_t l, q;
    int k, t;
    std::int64_t n;
  };
  for (const Shape& s : {Shape{61, 83, 9, 20, 30}, Shape{40, 24, 16, 16, 7}, Shape{70, 130, 0, 56, 50}, Shape{30, 49, 3, 21, 1}}) {
    for (int form = 0; form < 3; ++form) {
      const Result alone = run(s.l, s.q, s.k, s.t, s.n, form == 1, form == 2, 1);
      const Result crew = run(s.l, s.q, s.k, s.t, s.n, form == 1, form == 2, 3);
      const bool same = alone.M == crew.M && alone.S == crew.S && alone.B == crew.B && alone.A == crew.A;
      std::printf("%d %d %d\n", alone.status, static_cast<int>(alone.applied), static_cast<int>(same));
    }
  }
}
