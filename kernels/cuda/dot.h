// Products of rows and queries, the same bits as on the CPU.
#pragma once

#include "block.h"
#include "silvertriton/half.h"

namespace silvertriton::cuda {

__device__ inline bool is_aligned(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Dot product of an fp16 row [D] and a query [D], in the order of silvertriton/instruction_set.h: component i goes to
// sum i mod 16. Two neighbouring lanes share a row, each has eight of the sums; both return the product. Called by
// whole warps, with dims of 0 where there is no row.
__device__ inline float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    int64_t i = 8 * (lane_of_thread() % 2);
    if (dims % 8 == 0 && is_aligned(row) && is_aligned(query)) {
        for (; i < dims; i += 16) {
            const uint4 halves = *reinterpret_cast<const uint4*>(row + i);
            const float4 low = *reinterpret_cast<const float4*>(query + i);
            const float4 high = *reinterpret_cast<const float4*>(query + i + 4);
            const auto first = [](unsigned pair) { return from_half(static_cast<uint16_t>(pair)); };
            const auto second = [](unsigned pair) { return from_half(static_cast<uint16_t>(pair >> 16)); };
            sums[0] += first(halves.x) * low.x;
            sums[1] += second(halves.x) * low.y;
            sums[2] += first(halves.y) * low.z;
            sums[3] += second(halves.y) * low.w;
            sums[4] += first(halves.z) * high.x;
            sums[5] += second(halves.z) * high.y;
            sums[6] += first(halves.w) * high.z;
            sums[7] += second(halves.w) * high.w;
        }
    } else {
        for (; i < dims; i += 16)
            for (int k = 0; k < 8; ++k)
                if (i + k < dims) sums[k] += from_half(row[i + k]) * query[i + k];
    }
    for (int k = 0; k < 8; ++k) sums[k] += __shfl_xor_sync(kAllLanes, sums[k], 1);
    for (int width = 4; width > 0; width /= 2)
        for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
    return sums[0];
}

// Groups of four codes of a query, padded with zeros for mma and for loads of four groups.
ST_HOST_DEVICE constexpr int64_t padded_groups(int64_t dims) {
    return (groups_of(dims) + 7) / 8 * 8;
}

// Sums of code products of the block's row `lane` and kQueries queries. `codes` [groups, 32] words of four; queries lie
// `stride` words apart, 16-byte aligned.
template <int kQueries>
__device__ inline void dot_block(const int32_t* codes, int64_t groups, const int32_t* queries, int64_t stride,
                                 int32_t (&sums)[kQueries]) {
    const int32_t* code = codes + lane_of_thread();
    for (int q = 0; q < kQueries; ++q) sums[q] = 0;
    for (int64_t j = 0; j < groups; j += 4) {
        int32_t words[4];
        for (int k = 0; k < 4; ++k) words[k] = j + k < groups ? code[(j + k) * kBlockRows] : 0;
        for (int q = 0; q < kQueries; ++q) {
            const int4 query = *reinterpret_cast<const int4*>(queries + q * stride + j);
            sums[q] = __dp4a(words[0], query.x, sums[q]);
            sums[q] = __dp4a(words[1], query.y, sums[q]);
            sums[q] = __dp4a(words[2], query.z, sums[q]);
            sums[q] = __dp4a(words[3], query.w, sums[q]);
        }
    }
}

}  // namespace silvertriton::cuda
