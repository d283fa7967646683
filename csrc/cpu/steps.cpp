#include <memory>
#include <new>

#include "cpu/sets.h"

namespace lip_fast::cpu {
namespace {

struct Aligned {
  void operator()(char* at) const { ::operator delete(at, std::align_val_t(64)); }
};

/// The steps with vectors of at most so many bytes, of those that there are.
const Steps& steps(int most) {
  if (const Steps* const found = most >= 64 ? steps_of_64_bytes() : nullptr) return *found;
  if (const Steps* const found = most >= 32 ? steps_of_32_bytes() : nullptr) return *found;
  return *steps_of_16_bytes();
}

/// Takes a step in room of its own.
template <class Step, class Room>
void take(Step& step, int threads, void (*run)(Step&, const Room&, const Crew&)) {
  struct Call {
    Step& step;
    Room room;
    void (*run)(Step&, const Room&, const Crew&);
  };
  Call call{step, {}, run};
  const auto size = static_cast<std::size_t>(lay_out(call.room, step, nullptr));
  const std::unique_ptr<char, Aligned> memory(static_cast<char*>(::operator new(size, std::align_val_t(64))));
  lay_out(call.room, step, memory.get());
  with_crew(
      threads,
      [](const Crew& crew, void* argument) {
        const Call& call = *static_cast<const Call*>(argument);
        call.run(call.step, call.room, crew);
      },
      &call);
}

}  // namespace

int vector_bytes(int most) {
  const Steps* const found = &steps(most);
  return found == steps_of_64_bytes() ? 64 : found == steps_of_32_bytes() ? 32 : 16;
}

void truncated_step(TruncatedStep& step) { take(step, step.threads, steps(step.vector_bytes).truncated); }

void projected_step(ProjectedStep& step) { take(step, step.threads, steps(step.vector_bytes).projected); }

void exact_step(ExactStep& step) { take(step, 1, steps(step.vector_bytes).exact); }

}  // namespace lip_fast::cpu
