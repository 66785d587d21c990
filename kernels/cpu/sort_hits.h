// Sorting of packed hits. They come in random order, and a comparison sort mispredicts a branch at every other step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "silvertriton/order.h"

namespace silvertriton::cpu {

// Sorts by `better`, which must go by key first: a radix sort of the keys, a byte at a time from the lowest, then runs
// of equal keys by comparison. `spare` is for its use.
template <typename Better>
void sort_hits(std::vector<uint64_t>& hits, std::vector<uint64_t>& spare, Better better) {
    constexpr size_t kFew = 32;  // below, counting the bytes costs more
    constexpr int kBytes = 4, kValues = 256;
    if (hits.size() < kFew) {
        std::sort(hits.begin(), hits.end(), better);
        return;
    }
    spare.resize(hits.size());
    uint32_t counts[kBytes][kValues] = {};
    const auto byte_of = [](uint64_t hit, int byte) { return (key_of(hit) >> (8 * byte)) & 0xffu; };
    for (const uint64_t hit : hits)
        for (int byte = 0; byte < kBytes; ++byte) counts[byte][byte_of(hit, byte)] += 1;
    for (int byte = 0; byte < kBytes; ++byte) {
        if (counts[byte][byte_of(hits[0], byte)] == hits.size()) continue;
        uint32_t next = 0;  // the largest first
        for (int value = kValues - 1; value >= 0; --value) {
            const uint32_t count = counts[byte][value];
            counts[byte][value] = next;
            next += count;
        }
        for (const uint64_t hit : hits) spare[counts[byte][byte_of(hit, byte)]++] = hit;
        hits.swap(spare);
    }
    for (size_t first = 0, last; first < hits.size(); first = last) {
        for (last = first + 1; last < hits.size() && key_of(hits[last]) == key_of(hits[first]);) ++last;
        if (last - first > 1)
            std::sort(hits.begin() + static_cast<int64_t>(first), hits.begin() + static_cast<int64_t>(last), better);
    }
}

}  // namespace silvertriton::cpu
