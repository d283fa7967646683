#pragma once

// Inlined whatever the compiler expects of it: a loop around a vector that is kept in registers, or around work that is
// compiled for an instruction set, must not become a call.
#define LIP_FAST_INLINE inline __attribute__((always_inline))

// Compiled once for each of its template arguments, though it is called in many places. Only where the number of lanes,
// which is that of one instruction set, is among them.
#define LIP_FAST_ONCE __attribute__((noinline))
