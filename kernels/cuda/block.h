// What the threads of a warp or of a block do together. Every function is called by all of them.
#pragma once

#include "device.h"
#include "silvertriton/layout.h"

namespace silvertriton::cuda {

// Threads of a block; of the search's that have a request to themselves, and of select's, as many as registers allow.
constexpr int kThreads = 256, kRequestThreads = 512;
constexpr int kWarps = kThreads / 32, kMostWarps = kRequestThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_of_thread() {
    return static_cast<int>(threadIdx.x % 32);
}
__device__ inline int warp_of_thread() {
    return static_cast<int>(threadIdx.x / 32);
}
__device__ inline int thread_of_block() {
    return static_cast<int>(threadIdx.x);
}
__device__ inline int thread_count() {
    return static_cast<int>(blockDim.x);
}
__device__ inline int warp_count() {
    return static_cast<int>(blockDim.x / 32);
}

ST_HOST_DEVICE inline int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}
ST_HOST_DEVICE inline int64_t at_least(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// Inclusive prefix sums over the lanes.
__device__ inline int32_t warp_prefix_sum(int32_t value) {
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int32_t before = __shfl_up_sync(kAllLanes, value, lanes);
        if (lane_of_thread() >= lanes) value += before;
    }
    return value;
}

// Exclusive prefix sums over the threads; `total` of all. `shared` [kMostWarps] may be used again at once.
__device__ inline int32_t block_prefix_sum(int32_t value, int32_t* shared, int32_t* total) {
    const int32_t own = warp_prefix_sum(value);
    if (lane_of_thread() == 31) shared[warp_of_thread()] = own;
    __syncthreads();
    const int32_t of_warp = lane_of_thread() < warp_count() ? shared[lane_of_thread()] : 0;
    __syncthreads();
    *total = __reduce_add_sync(kAllLanes, of_warp);
    return __reduce_add_sync(kAllLanes, lane_of_thread() < warp_of_thread() ? of_warp : 0) + own - value;
}

__device__ inline int32_t block_sum(int32_t value, int32_t* shared) {
    const int32_t own = __reduce_add_sync(kAllLanes, value);
    if (lane_of_thread() == 0) shared[warp_of_thread()] = own;
    __syncthreads();
    const int32_t of_warp = lane_of_thread() < warp_count() ? shared[lane_of_thread()] : 0;
    __syncthreads();
    return __reduce_add_sync(kAllLanes, of_warp);
}

// The largest of values that are not below 0 nor NaN.
__device__ inline float block_max(float value, int32_t* shared) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, value, lanes);
        value = other > value ? other : value;
    }
    auto* of_warps = reinterpret_cast<float*>(shared);
    if (lane_of_thread() == 0) of_warps[warp_of_thread()] = value;
    __syncthreads();
    for (int warp = 0; warp < warp_count(); ++warp) value = of_warps[warp] > value ? of_warps[warp] : value;
    __syncthreads();
    return value;
}

// The first position in ascending values[first .. last) that is not below `bound`: by the warp, 32 pivots at a time.
__device__ inline int64_t warp_lower_bound(const int32_t* values, int64_t first, int64_t last, int64_t bound) {
    while (last - first > 32) {
        const int64_t step = (last - first + 31) / 32, at = first + lane_of_thread() * step;
        const int64_t below = __popc(__ballot_sync(kAllLanes, at < last && values[at] < bound));
        if (below == 0) return first;
        last = at_most(first + below * step, last);
        first += (below - 1) * step + 1;
    }
    const int64_t at = first + lane_of_thread();
    return first + __popc(__ballot_sync(kAllLanes, at < last && values[at] < bound));
}

// The same by one thread.
template <typename T, typename Bound>
__device__ inline int64_t lower_bound(const T* values, int64_t first, int64_t last, Bound bound) {
    while (first < last) {
        const int64_t middle = first + (last - first) / 2;
        if (values[middle] < bound) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

// Blocks of a cluster, within the index whatever its table says: kernels read it before they know it to be sound.
struct BlockRange {
    int64_t first, last;
};
__device__ inline BlockRange blocks_of(const FilterIndex& index, int64_t cluster) {
    const int64_t first = at_least(at_most(index.cluster_blocks[cluster], index.blocks), 0);
    return {first, at_least(at_most(index.cluster_blocks[cluster + 1], index.blocks), first)};
}

}  // namespace silvertriton::cuda
