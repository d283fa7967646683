// What lets one source serve g++ and nvcc.
#pragma once

#if defined(__CUDACC__)
#define LIP_FAST_FN __host__ __device__ inline
#else
#define LIP_FAST_FN inline
#endif

// On a CPU one function is compiled for several instruction sets and the loader picks; what it calls must be
// inlined to be compiled with it. Sanitizers start after the loader has picked, so they do without.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LIP_FAST_MULTIVERSION \
  __attribute__((flatten, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define LIP_FAST_MULTIVERSION
#endif
