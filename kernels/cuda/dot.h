// Products of rows and queries, the same bits as on the CPU.
#pragma once

#include "block.h"

namespace silvertriton::cuda {

__device__ inline bool is_aligned(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Dot products of `kRows` fp16 rows [D] and a query [D], in the order of silvertriton/instruction_set.h: component i
// goes to sum i mod 16. Two neighbouring lanes share rows, each has eight of the sums; both get the products. Called by
// whole warps; a row that is null has a product of 0. `kAhead` loads of a row are under way at once.
template <int kAhead, int kRows>
__device__ inline void dot_rows(const uint16_t* const (&rows)[kRows], const float* query, int64_t dims,
                                float (&products)[kRows]) {
    float sums[kRows][8] = {};
    const int64_t first = 8 * (lane_of_thread() % 2);
    bool aligned = dims % 8 == 0 && is_aligned(query);
    for (int n = 0; n < kRows; ++n) aligned = aligned && is_aligned(rows[n]);
    if (aligned) {
        for (int64_t start = first; start < dims; start += 16 * kAhead) {
            uint4 halves[kAhead][kRows];
            for (int step = 0; step < kAhead; ++step)
                for (int n = 0; n < kRows; ++n) {
                    const int64_t i = start + 16 * step;
                    const bool exists = rows[n] != nullptr && i < dims;
                    halves[step][n] = exists ? *reinterpret_cast<const uint4*>(rows[n] + i) : uint4{0, 0, 0, 0};
                }
            for (int step = 0; step < kAhead; ++step) {
                const int64_t i = start + 16 * step;
                if (i >= dims) break;
                const float4 low = *reinterpret_cast<const float4*>(query + i);
                const float4 high = *reinterpret_cast<const float4*>(query + i + 4);
                const float factors[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                for (int n = 0; n < kRows; ++n) {
                    const uint4 eight = halves[step][n];
                    const unsigned pairs[4] = {eight.x, eight.y, eight.z, eight.w};
                    for (int k = 0; k < 8; ++k)
                        sums[n][k] += float_of_half(static_cast<uint16_t>(pairs[k / 2] >> (16 * (k % 2)))) * factors[k];
                }
            }
        }
    } else {
        for (int64_t i = first; i < dims; i += 16)
            for (int n = 0; n < kRows; ++n)
                for (int k = 0; k < 8; ++k)
                    if (rows[n] != nullptr && i + k < dims) sums[n][k] += float_of_half(rows[n][i + k]) * query[i + k];
    }
    for (int n = 0; n < kRows; ++n) {
        for (int k = 0; k < 8; ++k) sums[n][k] += __shfl_xor_sync(kAllLanes, sums[n][k], 1);
        for (int width = 4; width > 0; width /= 2)
            for (int k = 0; k < width; ++k) sums[n][k] += sums[n][k + width];
        products[n] = sums[n][0];
    }
}

// The same of one row, with dims of 0 where there is none.
__device__ inline float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    const uint16_t* const rows[1] = {row};
    float product[1];
    dot_rows<1>(rows, query, dims, product);
    return product[0];
}

// Codes of a query lie as tensor cores take them (tile.h), in slabs of 32 groups of four codes, padded with zeros: the
// words of a lane of four, those of groups t, t + 4, t + 8, t + 12, and then of the other 16 groups, are contiguous.
constexpr int32_t kSlabGroups = 32;

ST_HOST_DEVICE constexpr int64_t padded_groups(int64_t dims) {
    return (groups_of(dims) + kSlabGroups - 1) / kSlabGroups * kSlabGroups;
}

// Where group `j` lies.
ST_HOST_DEVICE constexpr int64_t place_of_group(int64_t j) {
    return j / 16 * 16 + j % 4 * 4 + j % 16 / 4;
}

// Sum of code products of the block's row `lane` and a query. `codes` [groups, 32] words of four.
__device__ inline int32_t dot_block(const int32_t* codes, int64_t groups, const int32_t* query) {
    const int32_t* code = codes + lane_of_thread();
    int32_t sum = 0;
    for (int64_t first = 0; first < groups; first += 16)
        for (int t = 0; t < 4; ++t) {
            const int4 four = *reinterpret_cast<const int4*>(query + first + 4 * t);
            const int32_t factors[4] = {four.x, four.y, four.z, four.w};
            for (int k = 0; k < 4; ++k) {
                const int64_t j = first + t + 4 * k;
                if (j < groups) sum = __dp4a(code[j * kBlockRows], factors[k], sum);
            }
        }
    return sum;
}

}  // namespace silvertriton::cuda
