// The value model's weights of each request, on the device.
#pragma once

#include "block.h"

namespace silvertriton::cuda {

struct WeightsCall {
    const float* asked;            // [B, T]
    const float* defaults;         // [T]
    const int32_t* status_before;  // [B]
    int64_t batch, tasks;
    float* weights;   // [B, T]
    int32_t* status;  // [B]
};

// A thread a request.
__device__ inline void run_resolve_weights(const WeightsCall& call) {
    constexpr float kLargest = 3.402823466e38f;
    const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + thread_of_block();
    if (b >= call.batch) return;
    int32_t status = call.status_before[b];
    for (int64_t t = 0; t < call.tasks; ++t) {
        const float weight = call.asked[b * call.tasks + t];
        const bool is_finite = fabsf(weight) <= kLargest;
        call.weights[b * call.tasks + t] = is_finite ? weight : call.defaults[t];
        if (!is_finite && weight == weight) status = first_status(status, kStatusTaskWeights);
    }
    call.status[b] = status;
}

}  // namespace silvertriton::cuda
