// The plugin of NeighbourScores. A block a request.

#include "../neighbour_scores.h"
#include "numbers.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_plugin_neighbour_scores(const int64_t* history, const int32_t* rows, const int64_t* ids,
                                         const int32_t* item_rows, const int32_t* neighbours, const float* weights,
                                         const silvertriton::cuda::NeighboursNumbers* numbers, int32_t batch,
                                         int32_t history_width, int32_t candidates, float* sums, float* maxima,
                                         int64_t* scratch) {
    using namespace silvertriton::cuda;
    __shared__ NeighboursShared shared;
    Parts parts(scratch);
    NeighboursCall call = plan_neighbour_scores(parts, batch, candidates, history_width);
    call.history = history;
    call.rows = rows;
    call.items = {ids, item_rows, numbers->rows, numbers->items};
    call.graph = {neighbours, weights, numbers->width};
    call.most = numbers->most;
    call.sums = sums;
    call.maxima = maxima;
    run_neighbour_scores(call, shared);
}
