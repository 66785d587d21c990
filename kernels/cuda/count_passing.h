// How many rows of each cluster pass a request's filter.
#pragma once

#include "search.h"

namespace silvertriton::cuda {

// Counts the rows that pass in the 32 clusters of a block of centroids, some clusters at a time.
__device__ inline void count_passing(const SearchRun& run, int64_t b, int64_t block) {
    constexpr int kTogether = 4;
    const FilterIndex& index = run.index.filters;
    const int lane = lane_of_thread();
    const int64_t own = block * kBlockRows + lane;
    const BlockRange blocks = own < index.clusters ? blocks_of(index, own) : BlockRange{0, 0};
    const uint32_t* words = run.filter.call.words + b * index.blocks;
    int32_t passing = 0;
    ST_ROLLED
    for (int start = 0; start < 32; start += kTogether) {
        int32_t first[kTogether], count[kTogether], sums[kTogether], longest = 0;
        for (int n = 0; n < kTogether; ++n) {
            first[n] = __shfl_sync(kAllLanes, static_cast<int32_t>(blocks.first), start + n);
            count[n] = __shfl_sync(kAllLanes, static_cast<int32_t>(blocks.last), start + n) - first[n];
            longest = count[n] > longest ? count[n] : longest;
            sums[n] = 0;
        }
        for (int32_t i = lane; i < longest; i += 32)
            for (int n = 0; n < kTogether; ++n) sums[n] += i < count[n] ? __popc(words[first[n] + i]) : 0;
        for (int n = 0; n < kTogether; ++n) {
            const int32_t sum = __reduce_add_sync(kAllLanes, sums[n]);
            if (lane == start + n) passing = sum;
        }
    }
    if (own < index.clusters) run.filter.cluster_passing[b * index.clusters + own] = passing;
}

}  // namespace silvertriton::cuda
