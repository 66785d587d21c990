// A search on the device: what its kernels share. docs/gpu.md has the order in which they run.
#pragma once

#include "filter.h"
#include "select.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

// One request as `prepare` leaves it.
struct RequestState {
    int32_t probes, candidates;  // 0 probes: as many as may hold a candidate
    int32_t filtered;            // words and cluster_passing are written
    int32_t excluded;            // rows that it excludes
    float length;                // of the query's codes
};

// How far the wide search (wide.h) of a request has come.
struct Progress {
    int32_t hits;             // appended, those beyond `room` too
    uint32_t floor;           // the key that a hit has to reach
    int32_t failed;           // it has to be searched alone
    int32_t fixed;            // the clusters taken are known
    int32_t ordered, listed;  // of clusters in order
    int32_t taken, covered;   // where fixed: clusters, and passing rows in them
    int32_t next, stop;       // places before which clusters were wanted, and are taken (-1: not known)
};

// Blocks of a cluster that are wanted together.
constexpr int32_t kChunkBlocks = 8;

struct Chunk {
    int32_t cluster, number;
};

// The wide search of a batch. P phases; W words of a bit for each request.
struct WideRun {
    Progress* progress;     // [B], null: requests are searched alone
    int32_t* places;        // [B, C] of the clusters that are wanted
    int32_t* hit_places;    // [B, room] of the hits' clusters
    uint32_t* wanted;       // [P, C, W]
    int32_t* claims;        // [P, C] requests that want a cluster
    Chunk* chunks;          // [P, chunk_room]
    int32_t* chunk_counts;  // [P]
    int64_t wanted_words, chunk_room;
    uint32_t* cleared;  // wanted, claims and chunk_counts
    int64_t cleared_words;
};

// Arguments of every kernel of a search. [B, ...] but for the first three.
struct SearchRun {
    SearchRequests requests;
    SearchIndex index;
    SearchLimits limits;
    SearchResults results;
    FilterRun filter;       // its status is the results', its passing are the rows that pass where `filtered`
    RequestState* states;   // [B]
    int32_t* query_codes;   // [B, G]: groups of four codes in the order of dot.h, zero past P4
    int64_t query_groups;   // G
    float* units;           // [B, D] the query in units of its scale
    float* projected;       // [B, P]
    int32_t* excluded;      // [B, EP] rows
    uint32_t* bounds;       // [B, C] sortable bounds, 0 where that is no number
    uint64_t* order;        // [B, power of two from C on] clusters by bound
    int32_t* taken;         // [B, C] clusters
    int32_t* taken_blocks;  // [B, C + 1] blocks of those before
    uint64_t* hits;         // [B, room]
    int64_t order_room, room;
    WideRun wide;
};

// Rows of request b that pass and are not excluded.
__device__ inline int64_t rows_passing(const SearchRun& run, int64_t b, const RequestState& state) {
    return state.filtered != 0 ? run.filter.call.passing[b] : run.index.filters.item_ids.items - state.excluded;
}

// Whether so few rows pass that all of them are scanned.
__device__ inline bool is_exact(const SearchRun& run, const RequestState& state, int64_t passing) {
    return passing <= at_least(run.limits.exact_rows, state.candidates);
}

// How many of a request's excluded rows lie in these blocks.
__device__ inline int64_t excluded_in(const SearchRun& run, int64_t b, const RequestState& state, BlockRange blocks) {
    if (state.excluded == 0) return 0;
    const int32_t* rows = run.excluded + b * run.filter.excluded_width;
    const int64_t first = lower_bound(rows, 0, state.excluded, blocks.first * kBlockRows);
    return lower_bound(rows, first, state.excluded, blocks.last * kBlockRows) - first;
}

// Passing rows of a cluster. Without a filter only a cluster's last block has rows that are none.
__device__ inline int32_t cluster_passing(const SearchRun& run, int64_t b, const RequestState& state, int64_t cluster) {
    const BlockRange blocks = blocks_of(run.index.filters, cluster);
    if (blocks.first == blocks.last) return 0;
    if (state.filtered != 0) return run.filter.cluster_passing[b * run.index.filters.clusters + cluster];
    const int64_t rows = (blocks.last - blocks.first - 1) * kBlockRows +
                         count_bits(run.index.filters.valid[blocks.last - 1]) - excluded_in(run, b, state, blocks);
    return static_cast<int32_t>(rows);
}

// Rows of a block that a request may return.
__device__ inline uint32_t rows_present(const SearchRun& run, int64_t b, const RequestState& state, int64_t block) {
    if (state.filtered != 0) return run.filter.call.words[b * run.index.filters.blocks + block];
    const uint32_t rows = run.index.filters.valid[block];
    return state.excluded == 0 ? rows : without_excluded(run.filter, b, block, rows);
}

}  // namespace silvertriton::cuda
