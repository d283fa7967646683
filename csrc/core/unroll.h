// Loops that nvcc unrolls, and g++ as it likes.
#pragma once

#if defined(__CUDA_ARCH__)
#define LIP_FAST_PRAGMA(text) _Pragma(#text)
#define LIP_FAST_UNROLL LIP_FAST_PRAGMA(unroll)
#define LIP_FAST_UNROLL_BY(n) LIP_FAST_PRAGMA(unroll n)
#else
#define LIP_FAST_UNROLL
#define LIP_FAST_UNROLL_BY(n)
#endif
