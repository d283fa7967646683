#pragma once

// Inlined whatever the compiler expects of it: a loop around a vector that is kept in registers, or around work that is
// compiled for an instruction set, must not become a call.
#define LIP_FAST_INLINE inline __attribute__((always_inline))
