// Memory asked for ahead of its use.
#pragma once

#include <cstdint>

namespace silvertriton::cpu {

// Asks for the cache line of an address, into the second-level cache. The empty statement is an effect: GCC takes a
// function that does nothing but prefetch for one without any, and drops the calls.
inline void ask(const void* address) {
    __builtin_prefetch(address, 0, 2);
    asm volatile("");
}

// Asks for the lines of `bytes` bytes that begin with a line; where they do not, the last line may be missed.
inline void ask(const void* begin, int64_t bytes) {
    constexpr int64_t kLine = 64;
    for (int64_t byte = 0; byte < bytes; byte += kLine) ask(static_cast<const char*>(begin) + byte);
}

}  // namespace silvertriton::cpu
