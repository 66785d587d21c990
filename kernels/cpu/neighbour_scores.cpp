// neighbour_scores: how near candidates are to a history in a graph of items.

#include "near_history.h"
#include "operators.h"
#include "parallel.h"

namespace silvertriton::cpu {

void neighbour_scores(const int64_t* history, int64_t history_width, const int32_t* rows, int64_t batch,
                      int64_t candidates, const ItemIds& items, const Neighbours& graph, int64_t most, float* sums,
                      float* maxima) {
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        NearHistory near;
        for (int64_t b = begin; b < end; ++b)
            near.score(history + b * history_width, history_width, rows + b * candidates, candidates, items, graph,
                       most, sums + b * candidates, maxima + b * candidates);
    });
}

}  // namespace silvertriton::cpu
