// The steps of a host on threads of our own, whose barriers a sanitizer knows, from and to arrays without a
// byte to spare: prints a line where the number of threads changes a bit, and what each step says.
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "cpu/sets.h"
#include "cpu/all_stages.h"

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
  std::vector<std::vector<float>> written;
  int status;
  bool applied;
};

class Numbers {
 public:
  std::vector<float> operator()(std::int64_t count, float scale = 1) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& value : x) value = scale * normal_(random_);
    return x;
  }

  /// Class indices, of which some are to be ignored.
  std::vector<std::int64_t> labels(std::int64_t count, std::int64_t l) {
    std::vector<std::int64_t> y(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = i % 7 == 3 ? -100 : static_cast<std::int64_t>(random_() % l);
    return y;
  }

 private:
  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
};

/// Takes the stages of a step in room of just its size.
template <class Stages, class Room, class Step>
void take(Step& step, int threads) {
  Room room{};
  std::vector<char> memory(static_cast<std::size_t>(lay_out(room, step, nullptr)) + 64);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  lay_out(room, step, memory.data() + (64 - address % 64) % 64);
  Barrier barrier(threads);
  std::vector<std::thread> crew;
  for (int rank = 0; rank < threads; ++rank) {
    crew.emplace_back([&, rank] { Stages(step, room, Crew(rank, threads, &Barrier::wait, &barrier)).run(); });
  }
  for (std::thread& thread : crew) thread.join();
}

Result truncated(std::int64_t l, std::int64_t q, int k, int t, std::int64_t n, bool drop, bool decompose, int threads) {
  Numbers numbers;
  std::vector<float> M = numbers(l * q), S(t), B(q * t), A(decompose ? l * t : 0);
  const std::vector<float> basis = numbers(q * t), X = numbers(n * q), bias = numbers(l);
  const std::vector<std::int64_t> y = numbers.labels(n, l);
  TruncatedStep a{};
  a.l = l, a.q = q, a.k = k, a.t = t, a.fresh = 8, a.M = M.data(), a.m_stride = q, a.basis = basis.data();
  a.seed = 3, a.step = 11, a.drop = drop, a.clip = true, a.tolerance = 1e-7;
  a.batch = {X.data(), decompose ? 0 : n, q, y.data(), -100}, a.bias = bias.data();
  a.A = decompose ? A.data() : nullptr, a.S = S.data(), a.B = B.data();
  a.threads = threads;
  take<TruncatedStages<4>, TruncatedRoom>(a, threads);
  return {{M, S, B, A}, a.status, a.applied};
}

Result projected(std::int64_t l, std::int64_t q, int k, int r, std::int64_t n, bool drop, bool decompose, int threads) {
  Numbers numbers;
  const int guards = 8, fresh = static_cast<int>(std::min<std::int64_t>(8, std::min(l, q) - k - r));
  const int kept = k - guards, t = guards + r + fresh, m = r + fresh, both = padded(t) + padded(m);
  // Of a diagonal weight with falling singular values and a gap, a small change later.
  std::vector<float> M = numbers(l * q, 1e-4f), basis(q * (k + r));
  for (int c = 0; c < std::min(l, q); ++c) {
    const float s = (c < k ? 1.0f : 0.05f) * (2.0f - static_cast<float>(c) / static_cast<float>(l + q));
    M[c * q + c] += s;
    if (c < k + r) basis[c * q + c] = c < k ? 1 / s : 1.0f;
  }
  const std::vector<float> X = numbers(n * q), bias = numbers(l);
  const std::vector<std::int64_t> y = numbers.labels(n, l);
  std::vector<float> following(q * (k + r)), Q, left, Z, right, S;
  ProjectedStep a{};
  a.l = l, a.q = q, a.k = k, a.guards = guards, a.r = r, a.fresh = fresh, a.M = M.data(), a.m_stride = q;
  a.basis = basis.data(), a.seed = 3, a.step = 11, a.drop = drop, a.clip = true, a.tolerance = 1e-7, a.deepest = 1;
  a.batch = {X.data(), decompose ? 0 : n, q, y.data(), -100}, a.bias = bias.data(), a.following = following.data();
  if (decompose) {
    Q.resize(l * padded(kept + padded(t))), left.resize(l * both), Z.resize((kept + t) * q), right.resize(q * both), S.resize(m);
    a.factors = {Q.data(), left.data(), Z.data(), right.data(), S.data()};
  }
  a.threads = threads;
  take<ProjectedStages<4>, ProjectedRoom>(a, threads);
  return {{M, following, Q, left, Z, right, S}, a.status, a.applied};
}

Result exact(std::int64_t l, std::int64_t q, int k, int r, std::int64_t n, bool drop) {
  Numbers numbers;
  std::vector<float> M = numbers(l * q);
  const std::vector<float> X = numbers(n * q), bias = numbers(l);
  const std::vector<std::int64_t> y = numbers.labels(n, l);
  ExactStep a{};
  a.M = M.data(), a.l = l, a.q = q, a.m_stride = q, a.k = k, a.r = r, a.drop = drop, a.tolerance = 1e-7;
  a.batch = {X.data(), n, q, y.data(), -100}, a.bias = bias.data();
  take<ExactStages<4>, ExactRoom>(a, 1);
  return {{M}, a.status, a.applied};
}

void tell(const Result& alone, const Result& crew) {
  std::printf("%d %d %d\n", alone.status, static_cast<int>(alone.applied), static_cast<int>(alone.written == crew.written));
}

}  // namespace

int main() {
  struct Shape {
    std::int64_t l, q;
    int k, t;
    std::int64_t n;
  };
  for (const Shape& s : {Shape{61, 83, 9, 20, 30}, Shape{40, 24, 16, 16, 7}, Shape{70, 130, 0, 56, 50}, Shape{140, 130, 50, 120, 9}, Shape{30, 49, 3, 21, 1}}) {
    for (int form = 0; form < 3; ++form) {
      const auto run = [&](int threads) { return truncated(s.l, s.q, s.k, s.t, s.n, form == 1, form == 2, threads); };
      tell(run(1), run(3));
    }
  }
  // Here ``t`` is the number of directions in the tail; blocks of 64 and one more, and no fresh columns.
  for (const Shape& s : {Shape{121, 113, 73, 5, 30}, Shape{130, 97, 20, 16, 50}, Shape{80, 120, 72, 8, 1}}) {
    for (int form = 0; form < 3; ++form) {
      const auto run = [&](int threads) { return projected(s.l, s.q, s.k, s.t, s.n, form == 1, form == 2, threads); };
      tell(run(1), run(3));
    }
  }
  for (const Shape& s : {Shape{10, 51, 4, 6, 30}, Shape{33, 7, 3, 2, 5}, Shape{24, 24, 0, 24, 3}, Shape{1, 9, 0, 1, 2}}) {
    const Result result = exact(s.l, s.q, s.k, s.t, s.n, true);
    tell(result, result);
  }
}
