// The CPU operators behind torch.ops.silvertriton, on plain pointers. docs/operators.md is the contract; sizes have
// been checked (kernels/torch/checks.h), the content of every argument that comes with a request has not.
#pragma once

#include <cstdint>
#include <vector>

#include "silvertriton/layout.h"

namespace silvertriton::cpu {

// One filter program, and where its result goes: a mask, or the rows that pass where those are few.
struct FilterRequest {
    const int64_t* program;      // [F]
    uint32_t* words;             // [NB], written unless `listed`
    std::vector<int32_t>* rows;  // ascending, written if `listed`
    bool listed;                 // written, like the rest
    int64_t passing;             // how many rows pass
    int32_t status;              // where it is not 0 nothing passes
};

// Throws std::runtime_error, which names `caller`, when the index contradicts itself where a program touches it.
void filter_rows(const char* caller, FilterRequest* requests, int64_t batch, int64_t program_width, int64_t fingerprint,
                 const FilterIndex& index);

// The mask [NB] of rows that pass.
void list_to_mask(const std::vector<int32_t>& rows, int64_t blocks, uint32_t* words);

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

// The most candidates that a request of the batch wants.
int64_t search_width(const SearchRequests& requests, const SearchLimits& limits);

void search(const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
            const SearchResults& results);

void rescore(const float* query,  // [B, D]
             const RowVectors& vectors,
             const int32_t* rows,  // [B, M]
             int64_t batch, int64_t candidates,
             float* scores);  // [B, M]

// Weights of the tasks: what a request asks for, NaN: the artifact's. Infinite ones are the request's fault.
void resolve_weights(const float* asked,     // [B, T]
                     const float* defaults,  // [T]
                     int64_t batch, int64_t tasks,
                     float* weights,    // [B, T]
                     int32_t* status);  // [B], in and out

// The graph of item_neighbours: those of the item at place n among the ascending ids.
struct Neighbours {
    const int32_t* rows;   // [N, J], -1 past the last
    const float* weights;  // [N, J]
    int64_t width;         // J
};

// Sum and maximum of the weights of the edges from a history's items to each candidate, 0 without any. Of a history the
// last `most` ids count; -1 and ids that are not in the catalogue are left out. Sums are in float32, newest item first.
void neighbour_scores(const int64_t* history,  // [B, L]
                      int64_t history_width,
                      const int32_t* rows,  // [B, M], -1 where there is no candidate
                      int64_t batch, int64_t candidates, const ItemIds& items, const Neighbours& graph, int64_t most,
                      float* sums,     // [B, M]
                      float* maxima);  // [B, M]

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

// The k best by value, then smaller id.
void select(const Scored& scored, const SelectResults& results);

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

// The same under rules. `rows` [B, M] of the candidates; the scales of `units` are the inverse lengths of its vectors,
// read only where similarity counts. Throws std::runtime_error when the groups contradict themselves where a candidate
// touches them.
void select_diverse(const Scored& scored, const int32_t* rows, const RowVectors& units, const Groups& groups,
                    const Relevance& relevance, const SelectResults& results);

}  // namespace silvertriton::cpu
