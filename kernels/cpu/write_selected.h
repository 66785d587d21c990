// What the selections write: the chosen candidates of one request with what belongs to them.
#pragma once

#include <cstdint>
#include <limits>

#include "operators.h"

namespace silvertriton::cpu {

// `position_at(i)`: the candidate of request `b` that is its i-th result, i < count <= k. Past them -1 and -inf.
template <typename PositionAt>
void write_selected(const Scored& scored, int64_t b, int64_t count, PositionAt position_at,
                    const SelectResults& results) {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    results.count[b] = static_cast<int32_t>(count);
    for (int64_t i = 0; i < scored.k; ++i) {
        const int64_t from = i < count ? b * scored.candidates + position_at(i) : -1, to = b * scored.k + i;
        results.ids[to] = from < 0 ? -1 : scored.ids[from];
        results.scores[to] = from < 0 ? kMinusInfinity : scored.values[from];
        for (int64_t t = 0; t < scored.task_count; ++t)
            results.tasks[to * scored.task_count + t] =
                from < 0 ? kMinusInfinity : scored.tasks[from * scored.task_count + t];
    }
}

}  // namespace silvertriton::cpu
