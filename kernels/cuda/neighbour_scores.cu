// neighbour_scores: how near candidates are to a history in a graph of items.

#include "neighbour_scores.h"

#include "operators.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_neighbour_scores(silvertriton::cuda::NeighboursCall call) {
    using namespace silvertriton::cuda;
    __shared__ NeighboursShared shared;
    run_neighbour_scores(call, shared);
}

namespace silvertriton::cuda {

int64_t neighbour_scores_bytes(int64_t batch, int64_t candidates, int64_t history_width) {
    Parts parts(nullptr);
    plan_neighbour_scores(parts, batch, candidates, history_width);
    return parts.bytes();
}

void neighbour_scores(const Work& work, const int64_t* history, int64_t history_width, const int32_t* rows,
                      int64_t batch, int64_t candidates, const ItemIds& items, const Neighbours& graph, int64_t most,
                      float* sums, float* maxima) {
    Parts parts(work.scratch);
    NeighboursCall call = plan_neighbour_scores(parts, batch, candidates, history_width);
    call.history = history;
    call.rows = rows;
    call.items = items;
    call.graph = graph;
    call.most = most;
    call.sums = sums;
    call.maxima = maxima;
    launch("neighbour_scores", silvertriton_neighbour_scores, dim3(static_cast<unsigned>(batch)), kThreads,
           static_cast<Stream>(work.stream), call);
}

}  // namespace silvertriton::cuda
