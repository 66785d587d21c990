// Products of the 32 rows of a block and eight queries, by tensor cores (mma.m16n8k32).
//
// Codes lie as the fragments need them, if the rows of the two 16-row products are named so: with g = lane / 4 and t =
// lane % 4, a lane holds rows 4g .. 4g + 3, of every fourth group from t on: one load of 16 bytes a group, and a warp's
// loads are contiguous. A lane ends up with those rows' sums for queries 2t and 2t + 1.
#pragma once

#include "dot.h"

namespace silvertriton::cuda {

// Queries of a tile, and groups of a slab that a lane holds.
constexpr int kTileQueries = 8, kHeld = kSlabGroups / 4;

__device__ inline int lane_group() {
    return lane_of_thread() / 4;
}
__device__ inline int lane_of_group() {
    return lane_of_thread() % 4;
}

// Codes of a block ([groups, 32] words of four, 16-byte aligned) from group `first` on, zeros past the last.
__device__ __forceinline__ void load_codes(const int32_t* codes, int32_t groups, int32_t first, int4 (&held)[kHeld]) {
    for (int k = 0; k < kHeld; ++k) {
        const int32_t j = first + 4 * k + lane_of_group();
        held[k] =
            j < groups ? *reinterpret_cast<const int4*>(codes + j * kBlockRows + 4 * lane_group()) : int4{0, 0, 0, 0};
    }
}

// Codes of the query of column g, null for none, from group `first` on.
__device__ __forceinline__ void load_query(const int32_t* query, int32_t first, int32_t (&factors)[kHeld]) {
    for (int half = 0; half < 2; ++half) {
        const int32_t at = first + 16 * half + 4 * lane_of_group();
        const int4 four = query != nullptr ? *reinterpret_cast<const int4*>(query + at) : int4{0, 0, 0, 0};
        factors[4 * half] = four.x;
        factors[4 * half + 1] = four.y;
        factors[4 * half + 2] = four.z;
        factors[4 * half + 3] = four.w;
    }
}

// Adds to the sums of rows 4g + r for queries 2t + p: sums[p][r].
__device__ __forceinline__ void multiply(const int4 (&held)[kHeld], const int32_t (&factors)[kHeld], int32_t groups,
                                         int32_t (&sums)[2][4]) {
    int32_t low[4] = {sums[0][0], sums[1][0], sums[0][1], sums[1][1]};
    int32_t high[4] = {sums[0][2], sums[1][2], sums[0][3], sums[1][3]};
    for (int k = 0; k < kHeld && 4 * k < groups; k += 2) {
        const int32_t both[2] = {factors[k], factors[k + 1]};
        mma_16x8x32(low, {held[k].x, held[k].y, held[k + 1].x, held[k + 1].y}, both);
        mma_16x8x32(high, {held[k].z, held[k].w, held[k + 1].z, held[k + 1].w}, both);
    }
    for (int p = 0; p < 2; ++p) {
        sums[p][0] = low[p];
        sums[p][1] = low[2 + p];
        sums[p][2] = high[p];
        sums[p][3] = high[2 + p];
    }
}

}  // namespace silvertriton::cuda
