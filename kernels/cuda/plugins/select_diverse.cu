// The plugin of SelectDiverse. A block a request.

#include "../select_diverse.h"
#include "numbers.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads) silvertriton_plugin_select_diverse(
    const float* values, const int64_t* ids, const int32_t* rows, const float* task_scores, const int32_t* status,
    const uint16_t* vectors, const float* inverse_lengths, const int64_t* group_offsets, const int32_t* groups,
    const int32_t* most, const silvertriton::cuda::DiverseNumbers* numbers, int32_t batch, int32_t candidates,
    int32_t tasks, int64_t* best, float* scores, float* best_task_scores, int32_t* count, int64_t* scratch) {
    using namespace silvertriton::cuda;
    __shared__ DiverseShared shared;
    const DiverseNumbers& n = *numbers;
    const auto bits = [](int64_t word) { return __int_as_float(static_cast<int32_t>(word)); };
    Parts parts(scratch);
    DiverseCall call =
        plan_select_diverse(parts, {values, ids, task_scores, status, batch, candidates, tasks, n.k},
                            {vectors, inverse_lengths, n.rows, n.dims}, {bits(n.weight), bits(n.novelty)});
    call.rows = rows;
    call.groups = {n.groups != 0 ? group_offsets : nullptr, groups, most, n.entries, n.groups};
    call.results = {best, scores, best_task_scores, count};
    run_select_diverse(call, shared);
}
