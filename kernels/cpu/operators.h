// The CPU operators behind torch.ops.silvertriton, on plain pointers. docs/operators.md is the contract; sizes have
// been checked (kernels/torch/checks.h), the content of every argument that comes with a request has not.
#pragma once

#include <cstdint>
#include <vector>

#include "silvertriton/arguments.h"

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

// Sum and maximum of the weights of the edges from a history's items to each candidate, 0 without any. Of a history the
// last `most` ids count; -1 and ids that are not in the catalogue are left out. Sums are in float32, newest item first.
void neighbour_scores(const int64_t* history,  // [B, L]
                      int64_t history_width,
                      const int32_t* rows,  // [B, M], -1 where there is no candidate
                      int64_t batch, int64_t candidates, const ItemIds& items, const Neighbours& graph, int64_t most,
                      float* sums,     // [B, M]
                      float* maxima);  // [B, M]

// The place of each key among ascending `keys`, plus one; 0 where it is none of them.
void lookup(const int64_t* keys,   // [V]
            int64_t count,         // V
            const int64_t* asked,  // [A]
            int64_t asked_count,
            int64_t* slots);  // [A]

// A reranker's logits of each candidate; where a row is none they are of the first, and mean nothing.
void rerank(const RerankRequests& requests, const RerankItems& items, const RerankLayers& layers,
            float* logits);  // [B, M, T]

// The k best by value, then smaller id.
void select(const Scored& scored, const SelectResults& results);

// The same under rules. `rows` [B, M] of the candidates; the scales of `units` are the inverse lengths of its vectors,
// read only where similarity counts. Throws std::runtime_error when the groups contradict themselves where a candidate
// touches them.
void select_diverse(const Scored& scored, const int32_t* rows, const RowVectors& units, const Groups& groups,
                    const Relevance& relevance, const SelectResults& results);

}  // namespace silvertriton::cpu
