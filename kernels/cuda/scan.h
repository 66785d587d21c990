// Scores of the rows of one block for one request, by a warp.
#pragma once

#include "dot.h"
#include "search.h"

namespace silvertriton::cuda {

// Rows at most of a block that passes a filter that are scored from their vectors; see docs/operators.md.
__device__ inline int64_t sparse_rows(const SearchRun& run, const RequestState& state) {
    if (state.filtered == 0 || run.index.row_codes.words != nullptr) return 0;
    return sparse_vectors(run.index.vectors.dims, run.index.items.dims);
}

// Of at most 16 rows, two lanes a row. Lane r returns the score of row r where its bit is set.
__device__ inline float score_vectors(const SearchRun& run, int64_t b, int64_t block, uint32_t rows) {
    const int64_t dims = run.index.vectors.dims;
    uint32_t left = rows;
    for (int pair = 0; pair < lane_of_thread() / 2; ++pair) left &= left - 1;
    const int64_t row = block * kBlockRows + (left != 0 ? __ffs(static_cast<int>(left)) - 1 : 0);
    const float product = dot_row(run.index.vectors.vectors + row * dims, run.units + b * dims, left != 0 ? dims : 0);
    const float score = product * run.index.vectors.scales[row];
    const int rank = __popc(rows & ((1u << lane_of_thread()) - 1));
    return __shfl_sync(kAllLanes, score, (2 * rank) & 31);
}

// From codes: lane r returns the score of row r.
__device__ inline float score_codes(const SearchRun& run, int64_t b, int64_t block) {
    const int64_t groups = groups_of(run.index.items.dims);
    const auto* codes = reinterpret_cast<const int32_t*>(run.index.items.codes) + block * groups * kBlockRows;
    const int32_t sum = dot_block(codes, groups, run.query_codes + b * run.query_groups);
    return static_cast<float>(sum) * run.index.items.scales[block * kBlockRows + lane_of_thread()];
}

// Appends the hits of the lanes that have one, with the place of their cluster unless `places` is null; `count` may
// pass `room`, what is beyond is lost.
__device__ inline void append_hits(bool has_hit, uint64_t hit, int32_t place, uint64_t* hits, int32_t* places,
                                   int64_t room, int32_t* count) {
    const unsigned having = __ballot_sync(kAllLanes, has_hit);
    if (having == 0) return;
    int32_t first = 0;
    if (lane_of_thread() == 0) first = atomicAdd(count, static_cast<int32_t>(__popc(having)));
    first = __shfl_sync(kAllLanes, first, 0);
    const int64_t at = first + __popc(having & ((1u << lane_of_thread()) - 1));
    if (!has_hit || at >= room) return;
    hits[at] = hit;
    if (places != nullptr) places[at] = place;
}

}  // namespace silvertriton::cuda
