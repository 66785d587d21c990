// resolve_weights: the value model's weights of each request.

#include "resolve_weights.h"

#include "operators.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_resolve_weights(silvertriton::cuda::WeightsCall call) {
    silvertriton::cuda::run_resolve_weights(call);
}

namespace silvertriton::cuda {

void resolve_weights(const Work& work, const float* asked, const float* defaults, const int32_t* status_before,
                     int64_t batch, int64_t tasks, float* weights, int32_t* status) {
    launch("resolve_weights", silvertriton_resolve_weights,
           dim3(static_cast<unsigned>((batch + kThreads - 1) / kThreads)), kThreads, static_cast<Stream>(work.stream),
           WeightsCall{asked, defaults, status_before, batch, tasks, weights, status});
}

}  // namespace silvertriton::cuda
