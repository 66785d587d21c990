// Selection and sorting by one block.
#pragma once

#include "block.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

// Shared memory of the functions below.
constexpr int kBins = 256;
struct SelectShared {
    int32_t counts[kBins];
    int32_t sums[kMostWarps];
    int32_t wanted, bin;
    uint64_t lowest[kMostWarps], highest[kMostWarps];
};

// Elements that a thread looks at together, so that it waits for their loads once.
constexpr int kTogetherOfThread = 4;

// Calls body(value(i)) for the members among i < count, shared out over the threads.
template <typename Value, typename Member, typename Body>
__device__ inline void for_members(int64_t count, const Value& value, const Member& member, const Body& body) {
    using Key = decltype(value(count));
    for (int64_t base = thread_of_block(); base < count; base += kTogetherOfThread * thread_count()) {
        Key values[kTogetherOfThread];
        bool are[kTogetherOfThread];
        for (int k = 0; k < kTogetherOfThread; ++k) {
            const int64_t i = base + k * thread_count();
            are[k] = i < count && member(i);
            values[k] = are[k] ? value(i) : 0;
        }
        for (int k = 0; k < kTogetherOfThread; ++k)
            if (are[k]) body(values[k]);
    }
}

// The smallest and the largest of a warp's values.
__device__ inline void warp_range(uint32_t& low, uint32_t& high) {
    low = __reduce_min_sync(kAllLanes, low);
    high = __reduce_max_sync(kAllLanes, high);
}
__device__ inline void warp_range(uint64_t& low, uint64_t& high) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const uint64_t other_low = __shfl_xor_sync(kAllLanes, low, lanes);
        const uint64_t other_high = __shfl_xor_sync(kAllLanes, high, lanes);
        low = other_low < low ? other_low : low;
        high = other_high > high ? other_high : high;
    }
}

__device__ inline int bits_of(uint32_t value) {
    return 32 - __clz(static_cast<int>(value));
}
__device__ inline int bits_of(uint64_t value) {
    return 64 - __clzll(static_cast<int64_t>(value));
}

// The `wanted`-th largest (from 1) of those value(i), i < count, that are members, of which there are at least that
// many. `rank`: how many of those that equal it are among the `wanted` largest. Each pass shares what is left of their
// range out evenly over the bins: scores, whose highest bits are alike, do not all fall into one.
template <typename Value, typename Member>
__device__ inline auto select_largest(int64_t count, int32_t wanted, const Value& value, const Member& member,
                                      SelectShared& shared, int32_t* rank) {
    using Key = decltype(value(count));
    constexpr Key kLargest = ~static_cast<Key>(0);
    Key low = kLargest, high = 0;
    for_members(count, value, member, [&](Key own) {
        low = own < low ? own : low;
        high = own > high ? own : high;
    });
    warp_range(low, high);
    if (lane_of_thread() == 0) {
        shared.lowest[warp_of_thread()] = low;
        shared.highest[warp_of_thread()] = high;
    }
    __syncthreads();
    const bool is_warp = lane_of_thread() < warp_count();
    low = is_warp ? static_cast<Key>(shared.lowest[lane_of_thread()]) : kLargest;
    high = is_warp ? static_cast<Key>(shared.highest[lane_of_thread()]) : 0;
    warp_range(low, high);
    int32_t left = wanted;
    for (bool last = false; !last && low < high;) {
        const int shift = high - low < kBins ? 0 : bits_of(static_cast<Key>(high - low)) - 8;
        last = shift == 0;
        if (thread_of_block() < kBins) shared.counts[thread_of_block()] = 0;
        __syncthreads();
        for_members(count, value, member, [&](Key own) {
            if (low <= own && own <= high) atomicAdd(&shared.counts[(own - low) >> shift], 1);
        });
        __syncthreads();
        // Threads in descending order of bins: the prefix sum says how many lie in larger ones.
        const int own_bin = kBins - 1 - thread_of_block();
        const int32_t here = own_bin >= 0 ? shared.counts[own_bin] : 0;
        int32_t total;
        const int32_t larger = block_prefix_sum(here, shared.sums, &total);
        if (larger < left && left <= larger + here) {
            shared.bin = own_bin;
            shared.wanted = left - larger;
        }
        __syncthreads();
        left = shared.wanted;
        low += static_cast<Key>(shared.bin) << shift;
        const Key widest = (static_cast<Key>(1) << shift) - 1;
        high = low + (widest < high - low ? widest : high - low);
    }
    __syncthreads();
    *rank = left;
    return low;
}

// Smaller ids become larger values.
__device__ inline uint64_t descending(int64_t id) {
    return ~(static_cast<uint64_t>(id) ^ 0x8000000000000000ull);
}

// How an element stands to the worst one that is kept.
enum class Place : int { kBelow, kEqual, kAbove };

// Calls store(to, element(i)) for those of i < count that stand above, and for the first `rank` that are equal, in
// order from 0. What is stored may take the place of elements before it.
template <typename Element, typename Stands, typename Store>
__device__ inline void take_best(int64_t count, int32_t rank, const Element& element, const Stands& stands,
                                 const Store& store, SelectShared& shared) {
    int64_t kept = 0, equal = 0;
    for (int64_t base = 0; base < count; base += kTogetherOfThread * thread_count()) {
        const int64_t first = base + thread_of_block() * kTogetherOfThread;
        uint64_t elements[kTogetherOfThread];
        Place places[kTogetherOfThread];
        int32_t own = 0;
        for (int k = 0; k < kTogetherOfThread; ++k) elements[k] = first + k < count ? element(first + k) : 0;
        for (int k = 0; k < kTogetherOfThread; ++k) {
            places[k] = first + k < count ? stands(elements[k]) : Place::kBelow;
            own += places[k] == Place::kAbove ? 1 : places[k] == Place::kEqual ? 1 << 16 : 0;
        }
        int32_t total;
        const int32_t before = block_prefix_sum(own, shared.sums, &total);
        int64_t above_before = kept + (before & 0xffff), equal_before = equal + (before >> 16);
        for (int k = 0; k < kTogetherOfThread; ++k) {
            if (places[k] == Place::kBelow) continue;
            if (places[k] == Place::kAbove || equal_before < rank)
                store(above_before + at_most(equal_before, rank), elements[k]);
            if (places[k] == Place::kAbove) {
                above_before += 1;
            } else {
                equal_before += 1;
            }
        }
        kept += total & 0xffff;
        equal += total >> 16;
    }
    __syncthreads();
}

// Keeps the best `limit` >= 1 of `count` >= limit hits, in any order, and returns the key of the worst of them. Equal
// scores go by smaller id; of hits that are equal in all, which ids that repeat make, the first ones stay.
__device__ inline uint32_t keep_best(uint64_t* hits, int64_t count, int32_t limit, const int64_t* ids,
                                     SelectShared& shared) {
    int32_t rank;
    const auto all = [](int64_t) { return true; };
    const auto key = [hits](int64_t i) { return key_of(hits[i]); };
    const uint32_t worst = select_largest(count, limit, key, all, shared, &rank);
    if (count == limit) return worst;
    const auto tied = [hits, worst](int64_t i) { return key_of(hits[i]) == worst; };
    int32_t ties = 0;
    for_members(count, key, tied, [&ties](uint32_t) { ties += 1; });
    ties = block_sum(ties, shared.sums);
    const bool by_id = ties > rank;
    uint64_t last_id = 0;
    if (by_id) {
        const auto id = [hits, ids](int64_t i) { return descending(ids[row_of(hits[i])]); };
        last_id = select_largest(count, rank, id, tied, shared, &rank);
    }
    const auto stands = [=](uint64_t hit) {
        if (key_of(hit) != worst || !by_id) return key_of(hit) < worst ? Place::kBelow : Place::kAbove;
        const uint64_t id = descending(ids[row_of(hit)]);
        return id == last_id ? Place::kEqual : id < last_id ? Place::kBelow : Place::kAbove;
    };
    const auto hit = [hits](int64_t i) { return hits[i]; };
    const auto store = [hits](int64_t to, uint64_t kept) { hits[to] = kept; };
    take_best(count, rank, hit, stands, store, shared);
    return worst;
}

// Sorts `count` = a power of two elements, the better ones first: a bitonic network (Batcher, 1968). Steps of at most
// 32 stay within the 64 elements of a warp's pairs, and wait for no other warp.
template <typename T, typename Better>
__device__ inline void sort_block(T* elements, int64_t count, const Better& better) {
    const auto pairs = static_cast<int32_t>(count / 2);
    __syncthreads();
    for (int32_t size = 2; size <= count; size *= 2) {
        for (int32_t stride = size / 2; stride > 0; stride /= 2) {
            for (int32_t pair = thread_of_block(); pair < pairs; pair += thread_count()) {
                const int32_t first = 2 * pair - (pair & (stride - 1)), second = first + stride;
                const bool forward = (first & size) == 0;
                const T a = elements[first], b = elements[second];
                if (forward ? better(b, a) : better(a, b)) {
                    elements[first] = b;
                    elements[second] = a;
                }
            }
            const int32_t next = stride > 1 ? stride / 2 : size;
            if (stride > 32 || next > 32) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

// The same of 64 elements a warp, of as many warps as the block has at most: steps within a warp's 64 are done in its
// registers, of which a lane has two elements. `elements` lie in shared memory.
template <typename Better>
__device__ inline void sort_by_warps(uint64_t* elements, int32_t count, const Better& better) {
    const int32_t low = 64 * warp_of_thread() + lane_of_thread(), high = low + 32;
    const bool works = 64 * warp_of_thread() < count;
    uint64_t a = works ? elements[low] : 0, b = works ? elements[high] : 0;
    const auto chosen = [&](uint64_t own, uint64_t other, int32_t at, int32_t size, int32_t stride) {
        const bool wants_better = ((at & stride) == 0) == ((at & size) == 0);
        return own != other && better(other, own) == wants_better ? other : own;
    };
    for (int32_t size = 2; size <= count; size *= 2)
        for (int32_t stride = size / 2; stride > 0; stride /= 2) {
            uint64_t other_a = b, other_b = a;
            if (stride > 32) {
                __syncthreads();
                if (works) {
                    elements[low] = a;
                    elements[high] = b;
                }
                __syncthreads();
                other_a = works ? elements[low ^ stride] : 0;
                other_b = works ? elements[high ^ stride] : 0;
            } else if (stride < 32) {
                other_a = __shfl_xor_sync(kAllLanes, a, stride);
                other_b = __shfl_xor_sync(kAllLanes, b, stride);
            }
            a = chosen(a, other_a, low, size, stride);
            b = chosen(b, other_b, high, size, stride);
        }
    __syncthreads();
    if (works) {
        elements[low] = a;
        elements[high] = b;
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

// Sorts `count` hits, for which there is room up to the next power of two, by `better`, which is asked of two that
// differ. A hit of 0 is the worst.
template <typename Better>
__device__ inline void sort_hits(uint64_t* hits, int64_t count, uint64_t* shared /* [kSharedSort] */,
                                 const Better& better) {
    const int64_t padded = power_of_two(count), by_warps = at_least(padded, 64);
    __syncthreads();
    if (by_warps <= at_most(kSharedSort, 64 * warp_count())) {
        for (int64_t i = thread_of_block(); i < by_warps; i += thread_count()) shared[i] = i < count ? hits[i] : 0;
        __syncthreads();
        sort_by_warps(shared, static_cast<int32_t>(by_warps), better);
        for (int64_t i = thread_of_block(); i < count; i += thread_count()) hits[i] = shared[i];
    } else {
        uint64_t* at = padded <= kSharedSort ? shared : hits;
        for (int64_t i = thread_of_block(); i < padded; i += thread_count()) at[i] = i < count ? hits[i] : 0;
        sort_block(at, padded, [&](uint64_t x, uint64_t y) { return x != y && better(x, y); });
        for (int64_t i = thread_of_block(); at == shared && i < count; i += thread_count()) hits[i] = at[i];
    }
    __syncthreads();
}

}  // namespace silvertriton::cuda
