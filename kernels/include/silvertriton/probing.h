// What the choice of clusters is made of: the same on every device, or answers would differ.
#pragma once

#include <cstdint>

#include "silvertriton/arguments.h"

namespace silvertriton {

// Clusters that the first round considers; each later one considers as many as all before it.
constexpr int64_t kFirstRound = 4;
// Clusters that are put in order at first, and times as many when those did not do.
constexpr int64_t kFirstOrdered = 64, kMoreOrdered = 4;

// How many standard deviations beyond a cluster's mean its rows are expected, where `passing` of the items pass:
// piecewise linear in items / passing between the powers of 4.
ST_HOST_DEVICE inline float reach_at(const SearchIndex& index, int64_t passing) {
    const float times = static_cast<float>(index.filters.item_ids.items) / static_cast<float>(passing);
    int64_t g = 0;
    float power = 1.0f;
    while (g + 1 < index.reach_count && times >= 4.0f * power) {
        power *= 4.0f;
        g += 1;
    }
    const float reach = index.reach[g];
    if (g + 1 == index.reach_count) return reach;
    return reach + (index.reach[g + 1] - reach) * ((times - power) / (3.0f * power));
}

}  // namespace silvertriton
