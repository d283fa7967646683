#include "cpu/truncated_step.h"

#include <memory>
#include <new>

#include "cpu/truncated_sets.h"

namespace lip_fast::cpu {
namespace {

struct Set {
  int bytes;
  RunTruncated run;
};

/// The widest of the sets that are there.
Set chosen(int most) {
  for (const Set& set : {Set{64, truncated_of_64_bytes()}, Set{32, truncated_of_32_bytes()}}) {
    if (set.bytes <= most && set.run != nullptr) return set;
  }
  return {16, truncated_of_16_bytes()};
}

struct Aligned {
  void operator()(char* at) const { ::operator delete(at, std::align_val_t(64)); }
};

struct Call {
  TruncatedStep& step;
  const Room& room;
  RunTruncated run;
};

}  // namespace

int vector_bytes(int most) { return chosen(most).bytes; }

void truncated_step(TruncatedStep& a) {
  Room room{};
  const auto bytes = static_cast<std::size_t>(lay_out(room, a, nullptr));
  const std::unique_ptr<char, Aligned> memory(static_cast<char*>(::operator new(bytes, std::align_val_t(64))));
  lay_out(room, a, memory.get());
  Call call{a, room, chosen(a.vector_bytes).run};
  with_crew(
      a.threads,
      [](const Crew& crew, void* argument) {
        const Call& call = *static_cast<const Call*>(argument);
        call.run(call.step, call.room, crew);
      },
      &call);
}

}  // namespace lip_fast::cpu
