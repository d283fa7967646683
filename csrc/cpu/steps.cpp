#include <memory>
#include <new>

#include "cpu/sets.h"

namespace lip_fast::cpu {
namespace {

struct Aligned {
  void operator()(char* at) const { ::operator delete(at, std::align_val_t(64)); }
};

/// Takes a step with vectors of as many bytes as are there, in room of its own.
template <class Step, class Room>
void take(Step& step, Run<Step, Room> of_64, Run<Step, Room> of_32, Run<Step, Room> of_16) {
  struct Call {
    Step& step;
    Room room;
    Run<Step, Room> run;
  };
  Call call{step, {}, nullptr};
  const int bytes = vector_bytes(step.vector_bytes);
  call.run = bytes == 64 ? of_64 : bytes == 32 ? of_32 : of_16;
  const auto size = static_cast<std::size_t>(lay_out(call.room, step, nullptr));
  const std::unique_ptr<char, Aligned> memory(static_cast<char*>(::operator new(size, std::align_val_t(64))));
  lay_out(call.room, step, memory.get());
  with_crew(
      step.threads,
      [](const Crew& crew, void* argument) {
        const Call& call = *static_cast<const Call*>(argument);
        call.run(call.step, call.room, crew);
      },
      &call);
}

}  // namespace

int vector_bytes(int most) {
  if (most >= 64 && truncated_of_64_bytes() != nullptr) return 64;
  return most >= 32 && truncated_of_32_bytes() != nullptr ? 32 : 16;
}

void truncated_step(TruncatedStep& step) {
  take<TruncatedStep, TruncatedRoom>(step, truncated_of_64_bytes(), truncated_of_32_bytes(), truncated_of_16_bytes());
}

void projected_step(ProjectedStep& step) {
  take<ProjectedStep, ProjectedRoom>(step, projected_of_64_bytes(), projected_of_32_bytes(), projected_of_16_bytes());
}

}  // namespace lip_fast::cpu
