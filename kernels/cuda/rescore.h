// Candidates against their fp16 vectors, on the device.
#pragma once

#include "dot.h"
#include "silvertriton/arguments.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

struct RescoreCall {
    const float* query;   // [B, D]
    RowVectors vectors;   // [R, D]
    const int32_t* rows;  // [B, M]
    int64_t batch, candidates;
    float* scores;  // [B, M]
};

// Two lanes a candidate, any number of blocks.
__device__ inline void run_rescore(const RescoreCall& call) {
    constexpr int64_t kOfBlock = kThreads / 2;
    const int64_t count = call.batch * call.candidates;
    for (int64_t base = blockIdx.x * kOfBlock; base < count; base += gridDim.x * kOfBlock) {
        const int64_t at = base + thread_of_block() / 2;
        const int32_t row = at < count ? call.rows[at] : -1;
        const bool exists = row >= 0 && row < call.vectors.rows;
        const int64_t dims = call.vectors.dims;
        const float product = dot_row(call.vectors.vectors + (exists ? row * dims : 0),
                                      call.query + (exists ? at / call.candidates * dims : 0), exists ? dims : 0);
        if (at >= count || lane_of_thread() % 2 != 0) continue;
        const uint32_t key = exists ? sortable(product * call.vectors.scales[row]) : kMinusInfinityKey;
        call.scores[at] = score_of(key);
    }
}

}  // namespace silvertriton::cuda
