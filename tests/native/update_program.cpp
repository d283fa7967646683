// The one-read kernels with an update in the emulator, for a test in Python that knows what they should give:
//
//   update_program RULE HELD ROWS COLUMNS STRIDE M GROUPS ORDER RACES FAULT  SCALE FOUND_INF WRITE  SCALARS... SETTINGS...
//
// RULE and HELD: an update by its name and the number of its arrays. SCALARS and SETTINGS: those of the rule.
// ORDER: forward, backward, or the seed of a random one. FAULT: what is left out, a barrier, "copies"
// or "signals"; or "none". SCALE and FOUND_INF: a value, or "none". Read: the weight, the gradient and the state, each
// ROWS x STRIDE floats, then V (M, COLUMNS). Written: the same arrays, Y (M, ROWS) and Z (M, COLUMNS); to the standard
// error stream, the number of races and what is broken.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "one_read_blocks.h"

namespace {

using lip_fast::OneRead;
using lip_fast::OneReadPlan;

constexpr std::size_t kHopperShared = 232448;

class Arguments {
 public:
  Arguments(int argc, char** argv) : all_(argv + 1, argv + argc) {}
  std::string text() {
    if (at_ >= all_.size()) {
      std::fprintf(stderr, "too few arguments\n");
      std::exit(2);
    }
    return all_[at_++];
  }
  int integer() { return std::stoi(text()); }
  double real() { return std::stod(text()); }

 private:
  std::vector<std::string> all_;
  std::size_t at_ = 0;
};

// On 16 bytes, as every allocation on a device is.
struct Array {
  explicit Array(std::size_t count) : quads((count + 3) / 4), count(count) {}
  float* data() { return &quads.data()->x; }
  void read() {
    if (std::fread(data(), sizeof(float), count, stdin) != count) std::exit(2);
  }
  void write() { std::fwrite(data(), sizeof(float), count, stdout); }

  std::vector<Quad> quads;
  std::size_t count;
};

emulator::Options options_from(Arguments& arguments) {
  emulator::Options options;
  const std::string order = arguments.text();
  if (order == "backward") options.order = emulator::Order::backward;
  else if (order != "forward") {
    options.order = emulator::Order::random;
    options.seed = std::stoull(order);
  }
  options.races = arguments.integer() != 0;
  const std::string fault = arguments.text();
  if (fault == "copies") options.skip_copy_wait = true;
  else if (fault == "signals") options.skip_signal = true;
  else if (fault != "none") options.skipped_barrier = std::stoi(fault);
  return options;
}

template <class Update>
int run(Arguments& arguments) {
  const int rows = arguments.integer(), columns = arguments.integer(), stride = arguments.integer();
  const int m = arguments.integer(), most_groups = arguments.integer();
  const emulator::Options options = options_from(arguments);
  const std::string scale = arguments.text(), found = arguments.text();
  const float grad_scale = scale == "none" ? 0.0f : std::stof(scale);
  const float found_inf = found == "none" ? 0.0f : std::stof(found);
  Update update{};
  update.scaled = scale != "none";
  update.write = arguments.integer() != 0;
  lip_fast::UpdateInputs inputs{};
  inputs.grad_scale = update.scaled ? &grad_scale : nullptr;
  inputs.found_inf = found == "none" ? nullptr : &found_inf;
  float values[Update::kInputs];
  for (int i = 0; i < Update::kInputs; ++i) {
    values[i] = static_cast<float>(arguments.real());
    inputs.values[i] = &values[i];
  }
  for (int i = 0; i < Update::kSettings; ++i) inputs.settings[i] = arguments.real();
  update.set(inputs.settings);
  float scalars[lip_fast::kMaxScalars];
  lip_fast::prepare_update<Update>(inputs, scalars);
  update.scalars = scalars;

  const std::size_t size = static_cast<std::size_t>(rows) * stride;
  std::vector<Array> arrays(1 + Update::kHeld, Array(size));
  Array V(static_cast<std::size_t>(m) * columns);
  for (Array& array : arrays) array.read();
  V.read();
  update.M = arrays[0].data();
  for (int k = 0; k < Update::kHeld; ++k) update.held[k] = arrays[1 + k].data();

  OneReadPlan plan{};
  if (!lip_fast::plan_update<Update>(columns, m, kHopperShared, &plan)) {
    std::fprintf(stderr, "no plan\n");
    return 3;
  }
  const int tiles = (rows + plan.rows - 1) / plan.rows, groups = std::min(most_groups, tiles);
  const std::size_t count = static_cast<std::size_t>(m) * columns;
  std::vector<float> Y = guarded(static_cast<std::size_t>(m) * rows), partials = guarded(groups * count), Z(count);
  const OneRead kernel_arguments{update.M, rows, stride,           columns, V.data(), m, Y.data() + kGuard,
                                 partials.data() + kGuard, tiles};
  emulator::Report report;
  lip_fast::with_update_shape<Update>(plan.width, [&](auto shape) {
    using Shape = decltype(shape);
    report = emulator::launch<ClusterBlock>(
        options, groups, plan.cluster, lip_fast::kOneReadThreads, Shape::kBytes,
        [&](auto& block) { lip_fast::one_read_thread<Shape>(block, kernel_arguments, update); });
  });
  for (const std::vector<float>* values : {&Y, &partials}) {
    for (std::size_t i = 0; i < kGuard; ++i) {
      const bool kept = (*values)[i] == kUntouched && (*values)[values->size() - 1 - i] == kUntouched;
      if (!kept) report.broken = "written beyond the ends";
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    float total = 0.0f;
    for (int group = 0; group < groups; ++group) total += partials[kGuard + group * count + i];
    Z[i] = total;
  }
  for (Array& array : arrays) array.write();
  std::fwrite(Y.data() + kGuard, sizeof(float), static_cast<std::size_t>(m) * rows, stdout);
  std::fwrite(Z.data(), sizeof(float), count, stdout);
  std::fprintf(stderr, "%lld races %s|%s", static_cast<long long>(report.races), report.first_race.c_str(),
               report.broken.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments(argc, argv);
  const std::string rule = arguments.text();
  const int held = arguments.integer();
  int code = 2;
  lip_fast::with_update(lip_fast::AllUpdates(), rule, held,
                        [&](auto update) { code = run<decltype(update)>(arguments); });
  return code;
}
