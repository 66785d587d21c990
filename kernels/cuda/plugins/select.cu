// The plugin of Select. A block a request.

#include "../select_best.h"
#include "numbers.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_plugin_select(const float* values, const int64_t* ids, const float* task_scores, const int32_t* status,
                               const silvertriton::cuda::SelectNumbers* numbers, int32_t batch, int32_t candidates,
                               int32_t tasks, int64_t* best, float* scores, float* best_task_scores, int32_t* count,
                               int64_t* scratch) {
    using namespace silvertriton::cuda;
    __shared__ SelectBestShared shared;
    const SelectCall call{{values, ids, task_scores, status, batch, candidates, tasks, numbers->k},
                          {best, scores, best_task_scores, count},
                          reinterpret_cast<uint64_t*>(scratch),
                          power_of_two(candidates)};
    run_select(call, shared);
}
