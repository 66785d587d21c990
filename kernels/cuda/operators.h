// The CUDA operators behind torch.ops.silvertriton, on plain pointers to device memory. They return as soon as their
// kernels are in the stream, never read device memory on the host and allocate nothing: a caller gives scratch memory
// of the size that is asked for, 256-byte aligned, and may release it in the order of the stream. docs/operators.md is
// the contract, docs/gpu.md says what runs where.
#pragma once

#include <cstdint>

#include "silvertriton/arguments.h"

namespace silvertriton::cuda {

struct Work {
    void* stream;   // cudaStream_t
    void* scratch;  // of the bytes that the operator asks for
};

// Programs [B, F], and where their results go.
struct FilterCall {
    const int64_t* program;  // [B, F]
    int64_t batch, program_width, fingerprint;
    uint32_t* words;   // [B, NB]
    int32_t* passing;  // [B]
    int32_t* status;   // [B]
};

int64_t filter_rows_bytes(const FilterCall& call);
void filter_rows(const Work& work, const FilterCall& call, const FilterIndex& index);

int64_t search_bytes(const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits);
void search(const Work& work, const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
            const SearchResults& results);

void rescore(const Work& work, const float* query, const RowVectors& vectors, const int32_t* rows, int64_t batch,
             int64_t candidates, float* scores);

void resolve_weights(const Work& work, const float* asked, const float* defaults, const int32_t* status_before,
                     int64_t batch, int64_t tasks, float* weights, int32_t* status);

int64_t neighbour_scores_bytes(int64_t batch, int64_t candidates, int64_t history_width);
void neighbour_scores(const Work& work, const int64_t* history, int64_t history_width, const int32_t* rows,
                      int64_t batch, int64_t candidates, const ItemIds& items, const Neighbours& graph, int64_t most,
                      float* sums, float* maxima);

int64_t select_bytes(const Scored& scored);
void select(const Work& work, const Scored& scored, const SelectResults& results);

int64_t select_diverse_bytes(const Scored& scored, const RowVectors& units, const Relevance& relevance);
void select_diverse(const Work& work, const Scored& scored, const int32_t* rows, const RowVectors& units,
                    const Groups& groups, const Relevance& relevance, const SelectResults& results);

}  // namespace silvertriton::cuda
