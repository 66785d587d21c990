// Runs CUDA kernels on a CPU, so that tests need no GPU: kernels/cuda/*.cu compile as C++ against this header.
//
// Every thread of a block is a fibre. Barriers, shuffles and votes wait for the threads that must take part, and abort
// with kernel, thread and line when those never come. Blocks run one after the other, threads of a block in an
// order drawn anew at every turn, blocks of a grid in one of each launch, so that a missing barrier shows as a wrong
// result. Shared memory is filled with garbage before each block; under AddressSanitizer every access is checked.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "silvertriton/half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define ST_ROLLED
#define __shared__ static __attribute__((section("st_shared")))
#define ST_REACHED(what) emulation::reached(what)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulation {

// Of the thread that runs.
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
void reached(const char* what);
void wait_for_block(int line);

// Gives `value` to the warp and returns what `lane` gave, once all lanes in `mask` have come to the same line.
constexpr int kWarpWords = 4;
struct Exchange {
    uint64_t words[32][kWarpWords];
};
const Exchange& exchange(unsigned mask, const uint64_t (&words)[kWarpWords], int line);

void launch(const char* name, const std::function<void()>& body, dim3 grid, int threads);

template <typename T>
T shuffle(unsigned mask, T value, int lane, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t words[kWarpWords] = {};
    std::memcpy(words, &value, sizeof value);
    const Exchange& all = exchange(mask, words, line);
    T result;
    std::memcpy(&result, all.words[lane & 31], sizeof result);
    return result;
}

inline int lane() {
    return static_cast<int>(thread_index().x % 32);
}

inline unsigned vote(unsigned mask, bool predicate, int line) {
    const uint64_t words[kWarpWords] = {predicate};
    const Exchange& all = exchange(mask, words, line);
    unsigned result = 0;
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1 && all.words[l][0] != 0) result |= 1u << l;
    return result;
}

template <typename T, typename Combine>
T reduce(unsigned mask, T value, int line, const Combine& combine) {
    const uint64_t words[kWarpWords] = {static_cast<uint32_t>(value)};
    const Exchange& all = exchange(mask, words, line);
    for (int l = 0; l < 32; ++l)
        if ((mask >> l & 1) != 0 && l != lane()) value = combine(value, static_cast<T>(all.words[l][0]));
    return value;
}
inline int32_t sum(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
inline uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
inline uint32_t larger(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

}  // namespace emulation

#define threadIdx emulation::thread_index()
#define blockIdx emulation::block_index()
#define blockDim emulation::block_size()
#define gridDim emulation::grid_size()
#define __syncthreads() emulation::wait_for_block(__LINE__)
#define __syncwarp() emulation::vote(~0u, true, __LINE__)
#define __shfl_sync(mask, value, source) emulation::shuffle(mask, value, source, __LINE__)
#define __shfl_xor_sync(mask, value, bits) emulation::shuffle(mask, value, emulation::lane() ^ (bits), __LINE__)
#define __shfl_up_sync(mask, value, lanes)                                                                         \
    emulation::shuffle(mask, value, emulation::lane() < (lanes) ? emulation::lane() : emulation::lane() - (lanes), \
                       __LINE__)
#define __ballot_sync(mask, predicate) emulation::vote(mask, predicate, __LINE__)
#define __reduce_add_sync(mask, value) emulation::reduce<int32_t>(mask, value, __LINE__, emulation::sum)
#define __reduce_min_sync(mask, value) emulation::reduce<uint32_t>(mask, value, __LINE__, emulation::smaller)
#define __reduce_max_sync(mask, value) emulation::reduce<uint32_t>(mask, value, __LINE__, emulation::larger)
#define __any_sync(mask, predicate) (emulation::vote(mask, predicate, __LINE__) != 0)

// One thread runs at a time, so that plain arithmetic is atomic.
template <typename T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = static_cast<T>(before + value);
    return before;
}
inline unsigned atomicOr(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at = before | value;
    return before;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
    const unsigned before = *at;
    if (value > before) *at = value;
    return before;
}

inline int __popc(unsigned word) {
    return __builtin_popcount(word);
}
inline int __ffs(int word) {
    return __builtin_ffs(word);
}
inline int __clzll(long long word) {
    return word == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(word));
}
inline int __clz(int word) {
    return word == 0 ? 32 : __builtin_clz(static_cast<unsigned>(word));
}
inline void __threadfence() {}

inline float __int_as_float(int word) {
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline int __dp4a(int a, int b, int sum) {
    for (int byte = 0; byte < 4; ++byte)
        sum += static_cast<int8_t>(a >> (8 * byte)) * static_cast<int8_t>(b >> (8 * byte));
    return sum;
}

namespace silvertriton::cuda {

using Stream = void*;

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, Stream,
            const Arguments&... arguments) {
    emulation::launch(name, [&] { kernel(arguments...); }, grid, threads);
}

inline int64_t multiprocessors() {
    return 3;
}

// Indexes of tests are small: both ways of a search run with any, as this variable says.
inline int64_t wide_blocks() {
    const char* blocks = std::getenv("ST_EMULATION_WIDE_BLOCKS");
    return blocks == nullptr ? 0 : std::atoll(blocks);
}

// c[16 x 8] += a[16 x 32] * b[32 x 8], from the registers of the whole warp; see kernels/cuda/device.h.
inline void mma_16x8x32(int32_t (&c)[4], const int32_t (&a)[4], const int32_t (&b)[2]) {
    const auto pair = [](int32_t low, int32_t high) {
        return static_cast<uint32_t>(low) | static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32;
    };
    const emulation::Exchange& all =
        emulation::exchange(~0u, {pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1]), 0}, __LINE__);
    const auto byte = [](uint64_t word, int at) { return static_cast<int8_t>(word >> (8 * at)); };
    // Row r, column k of a and row k, column n of b, by the table of the instruction.
    const auto a_at = [&](int r, int k) {
        return byte(all.words[r % 8 * 4 + k % 16 / 4][k / 16], (r / 8) * 4 + k % 4);
    };
    const auto b_at = [&](int k, int n) { return byte(all.words[n * 4 + k % 16 / 4][2], k / 16 * 4 + k % 4); };
    const int group = emulation::lane() / 4, column = emulation::lane() % 4 * 2;
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 32; ++k) c[i] += a_at(group + i / 2 * 8, k) * b_at(k, column + i % 2);
}

inline float float_of_half(uint16_t half) {
    return from_half(half);
}

}  // namespace silvertriton::cuda
