// The one order of results: score descending, then smaller id. Total, so that results do not depend on the order in
// which rows were seen, and with that not on threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "silvertriton/layout.h"

namespace silvertriton {

constexpr uint32_t kMinusInfinityKey = 0x007fffffu;

// Unsigned keys that order as floats do: larger is better, -0 equals +0, NaN comes last with -inf.
ST_HOST_DEVICE inline uint32_t sortable(float score) {
    if (score != score) return kMinusInfinityKey;
    score += 0.0f;  // -0 becomes +0
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    // All bits flip where the sign is set, else the sign alone. Without a branch, which scores of either sign
    // mispredict.
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

ST_HOST_DEVICE inline float score_of(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

// A scored row in one word: the larger word is better, by score and then by smaller row.
ST_HOST_DEVICE inline uint64_t packed_hit(float score, int32_t row) {
    return static_cast<uint64_t>(sortable(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(row));
}

ST_HOST_DEVICE inline uint32_t key_of(uint64_t hit) {
    return static_cast<uint32_t>(hit >> 32);
}

ST_HOST_DEVICE inline int32_t row_of(uint64_t hit) {
    return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(hit));
}

// Ids are read only on a tie of scores; equal ids (padding, or a catalogue that repeats one) fall back to the row.
ST_HOST_DEVICE inline bool better(uint64_t a, uint64_t b, const int64_t* ids) {
    if (key_of(a) != key_of(b)) return a > b;
    const int64_t id_a = ids[row_of(a)], id_b = ids[row_of(b)];
    return id_a != id_b ? id_a < id_b : a > b;
}

}  // namespace silvertriton
