// The CPU operators behind torch.ops.silvertriton, on plain pointers. docs/operators.md is the contract; sizes have
// been checked (kernels/torch/checks.h), the content of every argument that comes with a request has not.
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton::cpu {

struct FilterRequests {
    const int64_t* program;  // [B, F]
    const int32_t* exclude;  // [B, E]
    int64_t batch, program_width, exclude_width;
    int64_t fingerprint;
};

// Throws std::runtime_error when the index contradicts itself where a program touches it.
void filter_rows(const FilterRequests& requests, const FilterIndex& index,
                 uint32_t* words,   // [B, NB]
                 int32_t* passing,  // [B, C]
                 int32_t* status);  // [B]

void probe(const float* query,  // [B, D]
           const CodeBlocks& centroids, int64_t batch, int64_t clusters,
           const int32_t* passing,     // [B, C]
           const int32_t* probes,      // [B]
           const int32_t* candidates,  // [B]
           int32_t* taken,             // [B, C]
           int32_t* probed);           // [B]

struct ScanRequests {
    const float* query;         // [B, D]
    const uint32_t* words;      // [B, NB]
    const int32_t* clusters;    // [B, C]
    const int32_t* probed;      // [B]
    const int32_t* candidates;  // [B]
    int64_t batch, max_candidates;
};

void scan(const ScanRequests& requests, const CodeBlocks& items, const RowVectors& vectors, const int64_t* ids,
          const int32_t* cluster_blocks, int64_t clusters,
          int32_t* rows,      // [B, max_candidates]
          int32_t* scanned);  // [B]

void rescore(const float* query,  // [B, D]
             const RowVectors& vectors,
             const int32_t* rows,  // [B, M]
             int64_t batch, int64_t candidates,
             float* scores);  // [B, M]

void top_k(const float* scores,  // [B, M]
           const int64_t* ids,   // [B, M]
           int64_t batch, int64_t candidates, int64_t k,
           int64_t* positions);  // [B, k]

}  // namespace silvertriton::cpu
