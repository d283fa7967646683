#include "cpu/crew.h"

extern "C" {
// Of GNU's OpenMP, which LLVM's and Intel's offer too. Weak: bound at load to what is there, null where nothing is.
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
void GOMP_barrier() __attribute__((weak));
int omp_get_thread_num() __attribute__((weak));
int omp_get_num_threads() __attribute__((weak));
}

namespace lip_fast::cpu {
namespace {

struct Call {
  void (*work)(const Crew&, void*);
  void* argument;
};

void wait_for_all(void*) { GOMP_barrier(); }

void run(void* data) {
  const Call& call = *static_cast<const Call*>(data);
  // Maybe fewer than were asked for.
  call.work(Crew(omp_get_thread_num(), omp_get_num_threads(), wait_for_all, nullptr), call.argument);
}

}  // namespace

void with_crew(int threads, void (*work)(const Crew&, void*), void* argument) {
  Call call{work, argument};
  if (threads > 1 && GOMP_parallel && GOMP_barrier && omp_get_thread_num && omp_get_num_threads) {
    GOMP_parallel(run, &call, static_cast<unsigned>(threads), 0);
  } else {
    work(Crew(0, 1, nullptr, nullptr), argument);
  }
}

}  // namespace lip_fast::cpu
