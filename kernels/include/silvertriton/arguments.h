// What the operators take and give beside the index layout, on plain pointers, for CPU and CUDA alike.
#pragma once

#include <cstdint>

#include "silvertriton/find_row.h"
#include "silvertriton/layout.h"

namespace silvertriton {

// The whole index; see docs/operators.md for shapes.
struct SearchIndex {
    CodeBlocks items;               // D here is P, the dims of the codes
    CodeBlocks centroids;           // likewise
    RowCodes row_codes;             // those of the items; null words: there are none
    RowVectors vectors;             // all D dims
    const float* projection;        // [D, P], or null: P = D and codes are of the vectors themselves
    const float* centroid_spreads;  // [CB, 32]
    const float* reach;             // [G]
    int64_t reach_count;            // G >= 1
    FilterIndex filters;
};

// What a request that says nothing gets, and what it may ask for.
struct SearchLimits {
    int64_t probes, candidates, max_candidates, exact_rows;
};

struct SearchRequests {
    const float* query;      // [B, D]
    const int64_t* program;  // [B, F]
    const int64_t* exclude;  // [B, E] item ids, -1 none
    const int32_t* limits;   // [B, 2] probes, candidates; 0: the artifact's
    const int32_t* status;   // [B]
    int64_t batch, program_width, exclude_width;
    int64_t fingerprint;
};

struct SearchResults {
    int32_t* rows;    // [B, W]
    int64_t* ids;     // [B, W]
    float* scores;    // [B, W]
    int32_t* stats;   // [B, 4]
    int32_t* status;  // [B]
    int64_t width;    // W
};

// The graph of item_neighbours: those of the item at place n among the ascending ids.
struct Neighbours {
    const int32_t* rows;   // [N, J], -1 past the last
    const float* weights;  // [N, J]
    int64_t width;         // J
};

constexpr int64_t kMaxNearCandidates = int64_t{1} << 26;  // M: of their hashes of 32 bits, 31 are used

struct RerankRequests {
    const float* query;      // [B, D]
    const int64_t* history;  // [B, L] item ids
    const int32_t* rows;     // [B, M], -1: no candidate
    const float* scores;     // [B, M] of the search
    int64_t batch, candidates, query_dims, history_width;
};

// What a reranker reads of items.
struct RerankItems {
    RowVectors vectors;
    const uint16_t* kept;  // [R, H] IEEE binary16: an item's part of the first layer
    ItemIds ids;
    Neighbours graph;
    int64_t most;  // ids of a history that count
};

// Its layers, as builder/network/layers.py packs them: [inputs, outputs] with the bias as the last row, outputs padded
// to whole vectors of 16.
struct RerankLayers {
    static constexpr int64_t kFeatures = 5;  // of a candidate: builder/network/neighbours.py

    const float* user;                          // [D + 2, H]: of the query, of the history's length, bias
    const float* first;                         // [D + 5, H]: of query times vector, of the features
    const float* second;                        // [H + 1, S]
    const float* output;                        // [S + 5 + 1, T]: of the second layer, of the features, bias
    int64_t dims;                               // D; 0: neither query nor vectors are read
    int64_t hidden, second_hidden, tasks;       // H, S, T
    int64_t width, second_width, output_width;  // the same, padded
};

// Candidates with their final values, and how many of them are wanted.
struct Scored {
    const float* values;    // [B, M]
    const int64_t* ids;     // [B, M], -1: no candidate
    const float* tasks;     // [B, M, T]
    const int32_t* status;  // [B]: a request whose status is not 0 gets nothing
    int64_t batch, candidates, task_count, k;
};

// The chosen ones with what belongs to them, in the order in which they were chosen.
struct SelectResults {
    int64_t* ids;    // [B, K]
    float* scores;   // [B, K]
    float* tasks;    // [B, K, T]
    int32_t* count;  // [B]
};

// What rows have in common, and how many results may share it. `offsets` null: nothing.
struct Groups {
    const int64_t* offsets;  // [R + 1]: row r is in groups[offsets[r]] .. groups[offsets[r + 1] - 1]
    const int32_t* groups;   // [NV]
    const int32_t* most;     // [V]
    int64_t entries, count;  // NV, V
};

// What a candidate's relevance counts for, and its similarity to those chosen (0: nothing).
struct Relevance {
    float weight, novelty;
};

}  // namespace silvertriton
