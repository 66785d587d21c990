// find_item for several ids at once.
#pragma once

#include <algorithm>
#include <limits>

#include "silvertriton/find_row.h"

namespace silvertriton::cpu {

// Writes find_item of each of `ids` to `places`, which may be `ids`; -1 for negative ids. A search in a large catalogue
// waits for memory at almost every step; those of several ids wait together.
inline void find_items(const ItemIds& items, const int64_t* ids, int64_t count, int64_t* places) {
    constexpr int64_t kTogether = 16;
    const bool none = items.items == 0 || items.rows == 0;
    const auto id_at = [&items](int64_t item, int64_t otherwise) {
        const int32_t row = items.item_rows[item];
        const bool exists = row >= 0 && row < items.rows;
        const int64_t id = items.ids[exists ? row : 0];
        return exists ? id : otherwise;
    };
    for (int64_t start = 0; start < count; start += kTogether) {
        const int64_t together = std::min(kTogether, count - start);
        int64_t wanted[kTogether], first[kTogether] = {};
        std::copy_n(ids + start, together, wanted);
        for (int64_t size = none ? 0 : items.items, half; size > 1; size -= half) {
            half = size / 2;
            for (int64_t i = 0; i < together; ++i)
                first[i] += id_at(first[i] + half, std::numeric_limits<int64_t>::max()) <= wanted[i] ? half : 0;
        }
        for (int64_t i = 0; i < together; ++i) {
            const bool found = !none && wanted[i] >= 0 && id_at(first[i], -1) == wanted[i];
            places[start + i] = found ? first[i] : -1;
        }
    }
}

}  // namespace silvertriton::cpu
