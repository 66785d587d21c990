// What the selections write: the chosen candidates of one request with what belongs to them.
#pragma once

#include <cstdint>

#include "silvertriton/write_result.h"

namespace silvertriton::cpu {

// `position_at(i)`: the candidate of request `b` that is its i-th result, i < count <= k. Past them -1 and -inf.
template <typename PositionAt>
void write_selected(const Scored& scored, int64_t b, int64_t count, PositionAt position_at,
                    const SelectResults& results) {
    results.count[b] = static_cast<int32_t>(count);
    for (int64_t i = 0; i < scored.k; ++i) write_result(scored, b, i, i < count ? position_at(i) : -1, results);
}

}  // namespace silvertriton::cpu
