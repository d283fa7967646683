// The one-read kernel in the emulator: `one_read_test NAME` runs one of the tests below and ends with 0 if it passes.
#include "one_read_blocks.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

using lip_fast::OneRead;
using lip_fast::OneReadPlan;

template <class T>
struct Tag {
  using Kind = T;
};

struct Device {
  const char* name;
  std::size_t shared;
  int max_cluster;
};
constexpr Device kHopper{"227 kB, clusters of 16", 232448, 16};
constexpr Device kAmpere{"163 kB, no clusters", 166912, 1};
constexpr Device kConsumer{"99 kB, clusters of 8", 101376, 8};

struct Problem {
  std::int64_t rows;
  int columns, m;
  std::int64_t stride;
  std::vector<float> M, V;

  Problem(std::int64_t l, int q, int directions, std::int64_t extra = 0) : rows(l), columns(q), m(directions) {
    stride = (q + 3) / 4 * 4 + extra;
    std::mt19937_64 random(static_cast<std::uint64_t>(l * 1000003 + q * 1009 + directions));
    std::normal_distribution<float> normal;
    // What lies between the rows must not be read into a result.
    M.assign(static_cast<std::size_t>(l * stride), emulator::poison());
    V.resize(static_cast<std::size_t>(directions) * q);
    for (std::int64_t i = 0; i < l; ++i) {
      for (int c = 0; c < q; ++c) M[i * stride + c] = normal(random);
    }
    for (float& v : V) v = normal(random);
  }
};

struct Result {
  std::vector<float> Y, Z;
  emulator::Report report;
};

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

void expect_guards(const std::vector<float>& values, const std::string& what) {
  for (std::size_t i = 0; i < kGuard; ++i) {
    expect(values[i] == kUntouched && values[values.size() - 1 - i] == kUntouched, what + ": written beyond its ends");
  }
}

// As the launcher does it: passes, groups, and the sum over them.
Result run(const Problem& problem, const Device& device, int most_groups, const emulator::Options& options) {
  OneReadPlan plan{};
  const bool possible = lip_fast::plan_one_read(problem.columns, problem.m, device.shared, device.max_cluster, &plan);
  expect(possible, "a plan");
  Result result;
  result.Y = guarded(static_cast<std::size_t>(problem.m * problem.rows));
  result.Z.assign(static_cast<std::size_t>(problem.m) * problem.columns, 0.0f);
  const int tiles = static_cast<int>((problem.rows + plan.rows - 1) / plan.rows);
  const int groups = std::min(most_groups, tiles);
  for (int first = 0; first < problem.m; first += plan.directions) {
    const int m = std::min(plan.directions, problem.m - first);
    const std::size_t count = static_cast<std::size_t>(m) * problem.columns;
    std::vector<float> partials = guarded(groups * count);
    const OneRead arguments{problem.M.data(),
                            problem.rows,
                            problem.stride,
                            problem.columns,
                            problem.V.data() + static_cast<std::size_t>(first) * problem.columns,
                            m,
                            result.Y.data() + kGuard + first * problem.rows,
                            partials.data() + kGuard,
                            tiles};
    lip_fast::with_one_read_shape(plan.width, plan.rows, plan.stages, [&](auto shape) {
      using Shape = decltype(shape);
      const auto kernel = [&](auto& block) { lip_fast::one_read_thread<Shape>(block, arguments, lip_fast::NoUpdate()); };
      const auto launch = [&](auto tag) {
        return emulator::launch<typename decltype(tag)::Kind>(options, groups, plan.cluster,
                                                              lip_fast::kOneReadThreads, Shape::kBytes, kernel);
      };
      const emulator::Report report =
          device.max_cluster > 1 ? launch(Tag<ClusterBlock>()) : launch(Tag<PlainBlock>());
      result.report.races += report.races;
      if (result.report.first_race.empty()) result.report.first_race = report.first_race;
      if (result.report.broken.empty()) result.report.broken = report.broken;
      result.report.banks = report.banks;
    });
    expect_guards(partials, "partials");
    for (std::size_t i = 0; i < count; ++i) {
      float total = 0.0f;
      for (int group = 0; group < groups; ++group) total += partials[kGuard + group * count + i];
      result.Z[first * static_cast<std::size_t>(problem.columns) + i] = total;
    }
  }
  expect_guards(result.Y, "Y");
  return result;
}

// Independent of the kernel's: to nearest, ties away from zero, by arithmetic in double precision.
double rounded(float x) {
  if (x == 0.0f) return 0.0;
  int exponent;
  const double mantissa = std::frexp(std::fabs(static_cast<double>(x)), &exponent);  // in [0.5, 1)
  const double nearest = std::floor(mantissa * 2048.0 + 0.5);
  return std::copysign(std::ldexp(nearest, exponent - 11), x);
}

std::string label(const Problem& p, const Device& device, int groups) {
  return std::to_string(p.rows) + " x " + std::to_string(p.columns) + " (stride " + std::to_string(p.stride) + "), m " +
         std::to_string(p.m) + ", groups " + std::to_string(groups) + ", " + device.name;
}

// Y and Z against sums in double precision of the rounded factors; Z is the product with the Y that was written.
void check(const Problem& p, const Result& result, const std::string& what) {
  expect(result.report.broken.empty(), what + ": " + result.report.broken);
  const float* const Y = result.Y.data() + kGuard;
  constexpr double kUnit = 1.0 / (1 << 24);  // relative error of a sum
  std::vector<double> M(static_cast<std::size_t>(p.rows) * p.columns), V(p.V.size());
  for (std::int64_t i = 0; i < p.rows; ++i) {
    for (int c = 0; c < p.columns; ++c) M[i * p.columns + c] = rounded(p.M[i * p.stride + c]);
  }
  for (std::size_t i = 0; i < V.size(); ++i) V[i] = rounded(p.V[i]);
  double worst_y = 0, worst_z = 0;
  std::int64_t bad = 0;
  for (int j = 0; j < p.m; ++j) {
    for (std::int64_t i = 0; i < p.rows; ++i) {
      double exact = 0, size = 0;
      for (int c = 0; c < p.columns; ++c) {
        const double term = M[i * p.columns + c] * V[static_cast<std::size_t>(j) * p.columns + c];
        exact += term;
        size += std::fabs(term);
      }
      const float y = Y[j * p.rows + i];
      // 8 products of a warp, 4 parts and 16 blocks; then half a unit of tf32.
      const double error = std::fabs(y - exact), budget = 28 * kUnit * size + std::fabs(exact) / 2048.0 * 1.001;
      bad += !(error <= budget) || static_cast<double>(y) != rounded(y);
      if (budget > 0) worst_y = std::max(worst_y, error / budget);
    }
    for (int c = 0; c < p.columns; ++c) {
      double exact = 0, size = 0;
      for (std::int64_t i = 0; i < p.rows; ++i) {
        const double term = M[i * p.columns + c] * static_cast<double>(Y[j * p.rows + i]);
        exact += term;
        size += std::fabs(term);
      }
      const float z = result.Z[static_cast<std::size_t>(j) * p.columns + c];
      const double error = std::fabs(z - exact), budget = (p.rows / 8.0 + 6) * kUnit * size;
      bad += !(error <= budget);
      if (budget > 0) worst_z = std::max(worst_z, error / budget);
    }
  }
  expect(bad == 0, what + ": " + std::to_string(bad) + " values beyond the budget");
  std::printf("%s: error / budget %.2f (Y), %.2f (Z)\n", what.c_str(), worst_y, worst_z);
}

bool same_bits(const Result& a, const Result& b) {
  return std::memcmp(a.Y.data(), b.Y.data(), a.Y.size() * sizeof(float)) == 0 &&
         std::memcmp(a.Z.data(), b.Z.data(), a.Z.size() * sizeof(float)) == 0;
}

struct Case {
  Problem problem;
  Device device;
  int groups;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&all](std::int64_t rows, int columns, int m, const Device& device, int groups,
                          std::int64_t extra = 0) {
    all.push_back({Problem(rows, columns, m, extra), device, groups});
  };
  add(1, 4, 1, kHopper, 2);            // the least of everything
  add(1, 1, 1, kHopper, 1);
  add(5, 7, 3, kHopper, 1, 8);         // a column that no copy of 16 bytes fills
  add(40, 256, 48, kHopper, 1);        // no sends but to itself
  add(300, 100, 80, kHopper, 1);       // ten tiles in one group: all buffers go round twice
  add(300, 97, 33, kHopper, 3, 4);
  add(97, 257, 7, kHopper, 2);         // a second block with one column
  add(67, 1000, 48, kHopper, 2, 24);
  add(131, 600, 64, kHopper, 2);
  add(101, 2048, 80, kHopper, 1);
  add(33, 4096, 80, kHopper, 1);       // 16 blocks
  add(64, 4093, 48, kHopper, 2);
  add(61, 500, 128, kHopper, 1);       // two passes
  add(40, 1000, 81, kHopper, 2);
  add(200, 256, 80, kAmpere, 2);
  add(97, 130, 48, kAmpere, 1, 4);
  add(1, 4, 7, kAmpere, 1);
  add(33, 256, 128, kAmpere, 1);
  add(77, 2047, 48, kConsumer, 1);     // 8 blocks
  add(150, 256, 64, kConsumer, 1);     // all of the 99 kB
  add(49, 300, 80, kConsumer, 2);      // two passes of 40
  return all;
}

std::vector<emulator::Options> orders() {
  std::vector<emulator::Options> all(4);
  all[1].order = emulator::Order::backward;
  all[2].order = all[3].order = emulator::Order::random;
  all[2].seed = 1;
  all[3].seed = 2;
  return all;
}

// Right, and the same bits in every order.
void test_products() {
  for (const Case& c : cases()) {
    const std::string what = label(c.problem, c.device, c.groups);
    std::vector<Result> results;
    for (const emulator::Options& options : orders()) {
      results.push_back(run(c.problem, c.device, c.groups, options));
      expect(same_bits(results[0], results.back()), what + ": the order of threads matters");
    }
    check(c.problem, results[0], what);
  }
}

void test_races() {
  for (const auto& [rows, columns, m, device, groups] :
       {std::make_tuple(200, 300, 33, kHopper, 1), std::make_tuple(150, 600, 48, kHopper, 1),
        std::make_tuple(230, 256, 80, kHopper, 1), std::make_tuple(100, 256, 40, kAmpere, 1),
        std::make_tuple(90, 300, 17, kConsumer, 1)}) {
    for (const emulator::Options& order : orders()) {
      emulator::Options options = order;
      options.races = true;
      const Problem problem(rows, columns, m);
      const Result result = run(problem, device, groups, options);
      const std::string what = label(problem, device, groups);
      expect(result.report.races == 0, what + ": " + std::to_string(result.report.races) + " races, the first: " +
                                           result.report.first_race);
      expect(result.report.broken.empty(), what + ": " + result.report.broken);
    }
  }
}

// Each kind of synchronisation left out is noticed by the order of threads, and by the race check.
void test_teeth() {
  const Problem problem(300, 600, 33);
  const Result right = run(problem, kHopper, 1, {});
  struct Fault {
    const char* what;
    int barrier;
    bool copies, signals;
    bool seen_by_order;
  };
  const Fault faults[] = {{"projectors' barrier", lip_fast::kProjectorsBarrier, false, false, true},
                          {"wait for copies", -1, true, false, true},
                          {"wait for signals", -1, false, true, true},
                          {"barrier of even tiles", lip_fast::kDoneBarrier, false, false, true},
                          {"barrier of odd tiles", lip_fast::kDoneBarrier + 1, false, false, true}};
  for (const Fault& fault : faults) {
    bool order = false, races = false;
    for (const bool check_races : {false, true}) {
      for (emulator::Options options : orders()) {
        // One order that shows it is enough.
        if (check_races ? races : order) break;
        options.skipped_barrier = fault.barrier;
        options.skip_copy_wait = fault.copies;
        options.skip_signal = fault.signals;
        options.races = check_races;
        const Result result = run(problem, kHopper, 1, options);
        if (check_races) {
          races = races || result.report.races > 0;
        } else {
          order = order || !result.report.broken.empty() || !same_bits(right, result);
        }
      }
    }
    std::printf("without %s: %s by the order, %s by the race check\n", fault.what, order ? "seen" : "not seen",
                races ? "seen" : "not seen");
    expect(order, std::string("the order of threads does not show a missing ") + fault.what);
    expect(races || fault.copies, std::string("the race check does not show a missing ") + fault.what);
  }
}

// Fragments are read and written without bank conflicts. Only where the quads of a row are no multiple of eight can a
// quarter of a warp meet a bank twice, when it sums parts across the end of a row.
void test_banks() {
  for (const int m : {32, 48, 64, 80}) {
    emulator::Options options;
    options.banks = true;
    const Problem problem(64, 512, m);
    const Result result = run(problem, kHopper, 1, options);
    int lines = 0, conflicting = 0;
    for (const auto& [line, count] : result.report.banks) {
      if (line <= 0) continue;  // what goes to memory, few words, and what is written without a fragment
      ++lines;
      conflicting += count.second > count.first;
      if (count.second > count.first) std::printf("m %d, line %d: %ld / %ld\n", m, line, count.second, count.first);
      expect(count.second <= 1.5 * count.first, "line " + std::to_string(line) + ": too many conflicts");
    }
    std::printf("m %d: %d places, %d with conflicts\n", m, lines, conflicting);
    expect(lines >= 8, "places are counted");
    expect(conflicting <= (m % 32 == 0 ? 0 : 2), "bank conflicts at " + std::to_string(conflicting) + " places");
  }
}

// What is not finite reaches every result that depends on it, and no other.
void test_nonfinite() {
  const float values[] = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          emulator::poison(), lip_fast::float_of(0x7fffffffu), lip_fast::float_of(0xffffffffu)};
  for (const float value : values) {
    Problem problem(40, 300, 9);
    problem.M[17 * problem.stride + 270] = value;
    const Result result = run(problem, kHopper, 1, {});
    const float* const Y = result.Y.data() + kGuard;
    for (int j = 0; j < problem.m; ++j) {
      for (int i = 0; i < problem.rows; ++i) {
        expect(std::isfinite(Y[j * problem.rows + i]) == (i != 17), "its row, and it alone");
      }
      expect(!std::isfinite(result.Z[static_cast<std::size_t>(j) * problem.columns + 270]), "its column");
    }
  }
}

void test_rounding() {
  std::mt19937 random(5);
  for (int i = 0; i < 1000000; ++i) {
    std::uint32_t bits = random();
    if (i % 3 == 0) bits = (bits & 0xffffe000u) | 0x1000u;  // ties
    const float x = lip_fast::float_of(bits);
    if (!(std::fabs(x) < 3.4e38f) || std::fabs(x) < 2e-38f) continue;  // the product's own business
    expect(static_cast<double>(lip_fast::exact_tf32(x)) == rounded(x), "rounding of " + std::to_string(x));
  }
  expect(lip_fast::exact_tf32(0.0f) == 0.0f && lip_fast::exact_tf32(-0.0f) == 0.0f, "rounding of 0");
}

void test_plans() {
  const auto plan = [](std::int64_t columns, int m, const Device& device) {
    OneReadPlan p{};
    return lip_fast::plan_one_read(columns, m, device.shared, device.max_cluster, &p) ? p : OneReadPlan{};
  };
  for (const Device& device : {kHopper, kAmpere, kConsumer}) {
    for (int m = 1; m <= lip_fast::kMaxDirections; ++m) {
      for (const int columns : {1, 255, 256, 257, 2048, 2049, 4096, 4097}) {
        const OneReadPlan p = plan(columns, m, device);
        const bool possible = columns <= device.max_cluster * lip_fast::kSlice;
        expect((p.passes > 0) == possible, "a plan exactly where the columns fit");
        if (!possible) continue;
        std::size_t bytes = 0;
        expect(lip_fast::with_one_read_shape(p.width, p.rows, p.stages,
                                             [&](auto shape) { bytes = decltype(shape)::kBytes; }),
               "a shape");
        expect(bytes > 0 && bytes <= device.shared, "a shape that fits");
        const int columns_held = p.cluster * lip_fast::kSlice;
        expect(columns_held >= columns && (p.cluster == 1 || columns_held / 2 < columns), "the smallest cluster");
        expect(p.directions <= p.width && p.passes * p.directions >= m && (p.passes - 1) * p.directions < m,
               "passes that serve all directions");
      }
    }
  }
  expect(plan(4096, 80, kHopper).passes == 1 && plan(4096, 128, kHopper).passes == 2, "one pass up to 80 directions");
  for (const int m : {0, -1, 129}) expect(plan(64, m, kHopper).passes == 0, "directions out of range");
  for (const int columns : {0, -1}) expect(plan(columns, 8, kHopper).passes == 0, "columns out of range");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "products") test_products();
  else if (name == "races") test_races();
  else if (name == "teeth") test_teeth();
  else if (name == "banks") test_banks();
  else if (name == "nonfinite") test_nonfinite();
  else if (name == "rounding") test_rounding();
  else if (name == "plans") test_plans();
  else {
    std::printf("unknown test '%s'\n", name.c_str());
    return 2;
  }
  std::printf("%s: %d failures\n", name.c_str(), failures);
  return failures == 0 ? 0 : 1;
}
