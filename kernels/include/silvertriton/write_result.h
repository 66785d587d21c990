// What the selections write: a chosen candidate with what belongs to it.
#pragma once

#include <cstdint>

#include "silvertriton/arguments.h"
#include "silvertriton/order.h"

namespace silvertriton {

// The i-th result of request `b` is its candidate at `position`; -1: there is none, which is -1 and -inf.
ST_HOST_DEVICE inline void write_result(const Scored& scored, int64_t b, int64_t i, int64_t position,
                                        const SelectResults& results) {
    const float minus_infinity = score_of(kMinusInfinityKey);
    const int64_t from = position < 0 ? -1 : b * scored.candidates + position, to = b * scored.k + i;
    results.ids[to] = from < 0 ? -1 : scored.ids[from];
    results.scores[to] = from < 0 ? minus_infinity : scored.values[from];
    for (int64_t t = 0; t < scored.task_count; ++t)
        results.tasks[to * scored.task_count + t] =
            from < 0 ? minus_infinity : scored.tasks[from * scored.task_count + t];
}

}  // namespace silvertriton
