// The plugin of ResolveWeights. A thread a request.

#include "../resolve_weights.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_plugin_resolve_weights(const float* task_weights, const float* defaults, const int32_t* status,
                                        int32_t batch, int32_t tasks, float* weights, int32_t* first_status) {
    silvertriton::cuda::run_resolve_weights({task_weights, defaults, status, batch, tasks, weights, first_status});
}
