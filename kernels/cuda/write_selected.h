// What the selections write: the chosen candidates of one request with what belongs to them.
#pragma once

#include "block.h"
#include "silvertriton/arguments.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

// By the whole block. `position_at(i)`: the candidate of request `b` that is its i-th result, i < count <= k. Past them
// -1 and -inf.
template <typename PositionAt>
__device__ inline void write_selected(const Scored& scored, int64_t b, int64_t count, const PositionAt& position_at,
                                      const SelectResults& results) {
    const float minus_infinity = score_of(kMinusInfinityKey);
    if (thread_of_block() == 0) results.count[b] = static_cast<int32_t>(count);
    for (int64_t i = thread_of_block(); i < scored.k; i += kThreads) {
        const int64_t from = i < count ? b * scored.candidates + position_at(i) : -1, to = b * scored.k + i;
        results.ids[to] = from < 0 ? -1 : scored.ids[from];
        results.scores[to] = from < 0 ? minus_infinity : scored.values[from];
        for (int64_t t = 0; t < scored.task_count; ++t)
            results.tasks[to * scored.task_count + t] =
                from < 0 ? minus_infinity : scored.tasks[from * scored.task_count + t];
    }
}

}  // namespace silvertriton::cuda
