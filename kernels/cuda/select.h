// Selection and sorting by one block.
#pragma once

#include "block.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

// Shared memory of the functions below.
struct SelectShared {
    int32_t counts[kThreads];
    int32_t sums[kWarps];
    int32_t wanted;
    uint64_t prefix;
};

// The `wanted`-th largest (from 1) of those value(i), i < count, that are members, of which there are at least that
// many: radix selection from the highest of `bytes` bytes. `rank`: how many of those that equal it are among the
// `wanted` largest.
template <typename Value, typename Member>
__device__ inline uint64_t select_largest(int64_t count, int32_t wanted, int bytes, const Value& value,
                                          const Member& member, SelectShared& shared, int32_t* rank) {
    const int bin = thread_of_block();
    if (bin == 0) {
        shared.prefix = 0;
        shared.wanted = wanted;
    }
    for (int byte = bytes - 1; byte >= 0; --byte) {
        shared.counts[bin] = 0;
        __syncthreads();
        const uint64_t prefix = shared.prefix;
        for (int64_t i = bin; i < count; i += kThreads) {
            if (!member(i)) continue;
            const uint64_t own = value(i);
            if (byte + 1 < bytes && (own ^ prefix) >> (8 * (byte + 1)) != 0) continue;
            atomicAdd(&shared.counts[(own >> (8 * byte)) & 0xff], 1);
        }
        __syncthreads();
        // Threads in descending order of bins: the prefix sum says how many lie in larger ones.
        const int own_bin = kThreads - 1 - bin;
        const int32_t here = shared.counts[own_bin], left = shared.wanted;
        int32_t total;
        const int32_t larger = block_prefix_sum(here, shared.sums, &total);
        if (larger < left && left <= larger + here) {
            shared.prefix = prefix | static_cast<uint64_t>(own_bin) << (8 * byte);
            shared.wanted = left - larger;
        }
        __syncthreads();
    }
    const uint64_t found = shared.prefix;
    *rank = shared.wanted;
    __syncthreads();
    return found;
}

// Smaller ids become larger values.
__device__ inline uint64_t descending(int64_t id) {
    return ~(static_cast<uint64_t>(id) ^ 0x8000000000000000ull);
}

// Keeps the best `limit` >= 1 of `count` >= limit hits, in any order, and returns the key of the worst of them. Equal
// scores go by smaller id.
__device__ inline uint32_t keep_best(uint64_t* hits, int64_t count, int32_t limit, const int64_t* ids,
                                     SelectShared& shared) {
    int32_t of_worst;
    const auto all = [](int64_t) { return true; };
    const auto key = [hits](int64_t i) { return static_cast<uint64_t>(key_of(hits[i])); };
    const auto worst = static_cast<uint32_t>(select_largest(count, limit, 4, key, all, shared, &of_worst));
    if (count == limit) return worst;
    const auto tied = [hits, worst](int64_t i) { return key_of(hits[i]) == worst; };
    int32_t ties = 0, rank = 0;
    for (int64_t i = thread_of_block(); i < count; i += kThreads) ties += tied(i);
    ties = block_sum(ties, shared.sums);
    uint64_t last_id = 0;
    if (ties > of_worst) {
        const auto id = [hits, ids](int64_t i) { return descending(ids[row_of(hits[i])]); };
        last_id = select_largest(count, of_worst, 8, id, tied, shared, &rank);
    }
    // Forward, tile by tile: what is written lies before what is yet to be read. Of hits that are equal in all, which
    // ids that repeat make, the first ones stay.
    int64_t kept = 0, equal = 0;
    for (int64_t base = 0; base < count; base += kThreads) {
        const int64_t i = base + thread_of_block();
        const uint64_t hit = i < count ? hits[i] : 0;
        bool keep = i < count && key_of(hit) >= worst, is_last = false;
        if (keep && key_of(hit) == worst && ties > of_worst) {
            const uint64_t id = descending(ids[row_of(hit)]);
            keep = id > last_id;
            is_last = id == last_id;
        }
        int32_t total;
        const int32_t before = block_prefix_sum(keep | is_last << 16, shared.sums, &total);
        const int64_t equal_before = equal + (before >> 16);
        if (is_last && equal_before < rank) keep = true;
        const int64_t to = kept + (before & 0xffff) + at_most(equal_before, rank) - at_most(equal, rank);
        if (keep) hits[to] = hit;
        kept += (total & 0xffff) + at_most(equal + (total >> 16), rank) - at_most(equal, rank);
        equal += total >> 16;
    }
    __syncthreads();
    return worst;
}

// Sorts `count` = a power of two elements, the better ones first: a bitonic network (Batcher, 1968).
template <typename T, typename Better>
__device__ inline void sort_block(T* elements, int64_t count, const Better& better) {
    for (int64_t size = 2; size <= count; size *= 2) {
        for (int64_t stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int64_t pair = thread_of_block(); pair < count / 2; pair += kThreads) {
                const int64_t first = pair / stride * 2 * stride + pair % stride, second = first + stride;
                const bool forward = (first & size) == 0;
                const T a = elements[first], b = elements[second];
                if (forward ? better(b, a) : better(a, b)) {
                    elements[first] = b;
                    elements[second] = a;
                }
            }
        }
    }
    __syncthreads();
}

// Elements that are sorted in shared memory; more lie in global memory.
constexpr int64_t kSharedSort = 1024;

ST_HOST_DEVICE inline int64_t power_of_two(int64_t count) {
    int64_t power = 1;
    while (power < count) power *= 2;
    return power;
}

// Sorts `count` hits, for which there is room up to the next power of two, by `better`. A hit of 0 is the worst.
template <typename Better>
__device__ inline void sort_hits(uint64_t* hits, int64_t count, uint64_t* shared /* [kSharedSort] */,
                                 const Better& better) {
    const int64_t padded = power_of_two(count);
    const bool fits = padded <= kSharedSort;
    uint64_t* at = fits ? shared : hits;
    __syncthreads();
    for (int64_t i = thread_of_block(); i < padded; i += kThreads) {
        if (i >= count) {
            at[i] = 0;
        } else if (fits) {
            at[i] = hits[i];
        }
    }
    sort_block(at, padded, [&](uint64_t a, uint64_t b) { return b == 0 ? a != 0 : a != 0 && better(a, b); });
    for (int64_t i = thread_of_block(); fits && i < count; i += kThreads) hits[i] = at[i];
    __syncthreads();
}

}  // namespace silvertriton::cuda
