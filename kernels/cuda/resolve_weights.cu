// resolve_weights: the value model's weights of each request.

#include "block.h"
#include "operators.h"

namespace silvertriton::cuda {

struct WeightsCall {
    const float* asked;            // [B, T]
    const float* defaults;         // [T]
    const int32_t* status_before;  // [B]
    int64_t batch, tasks;
    float* weights;   // [B, T]
    int32_t* status;  // [B]
};

}  // namespace silvertriton::cuda

// A thread a request.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_resolve_weights(silvertriton::cuda::WeightsCall call) {
    using namespace silvertriton;
    constexpr float kLargest = 3.402823466e38f;
    const int64_t b = static_cast<int64_t>(blockIdx.x) * cuda::kThreads + cuda::thread_of_block();
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

namespace silvertriton::cuda {

void resolve_weights(const Work& work, const float* asked, const float* defaults, const int32_t* status_before,
                     int64_t batch, int64_t tasks, float* weights, int32_t* status) {
    launch("resolve_weights", silvertriton_resolve_weights,
           dim3(static_cast<unsigned>((batch + kThreads - 1) / kThreads)), kThreads, static_cast<Stream>(work.stream),
           WeightsCall{asked, defaults, status_before, batch, tasks, weights, status});
}

}  // namespace silvertriton::cuda
