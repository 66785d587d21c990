// What the selections write: the chosen candidates of one request with what belongs to them.
#pragma once

#include "block.h"
#include "silvertriton/write_result.h"

namespace silvertriton::cuda {

// By the whole block. `position_at(i)`: the candidate of request `b` that is its i-th result, i < count <= k. Past them
// -1 and -inf.
template <typename PositionAt>
__device__ inline void write_selected(const Scored& scored, int64_t b, int64_t count, const PositionAt& position_at,
                                      const SelectResults& results) {
    if (thread_of_block() == 0) results.count[b] = static_cast<int32_t>(count);
    for (int64_t i = thread_of_block(); i < scored.k; i += thread_count())
        write_result(scored, b, i, i < count ? position_at(i) : -1, results);
}

}  // namespace silvertriton::cuda
