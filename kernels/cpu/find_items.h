// Binary searches for several ids or keys at once.
#pragma once

#include <algorithm>
#include <limits>

#include "silvertriton/find_row.h"

namespace silvertriton::cpu {

constexpr int64_t kSearchedTogether = 16;

// Writes to `first` where each of `wanted`, at most kSearchedTogether, would be the last of `count` ascending values
// that is not above it, or 0. A search in a large table waits for memory at almost every step; several wait together.
template <typename ValueAt>
inline void search_together(int64_t count, ValueAt value_at, const int64_t* wanted, int64_t together, int64_t* first) {
    std::fill_n(first, together, int64_t{0});
    for (int64_t size = count, half; size > 1; size -= half) {
        half = size / 2;
        for (int64_t i = 0; i < together; ++i) first[i] += value_at(first[i] + half) <= wanted[i] ? half : 0;
    }
}

// Writes find_item of each of `ids` to `places`, which may be `ids`; -1 for negative ids.
inline void find_items(const ItemIds& items, const int64_t* ids, int64_t count, int64_t* places) {
    const bool none = items.items == 0 || items.rows == 0;
    const auto id_at = [&items](int64_t item, int64_t otherwise) {
        const int32_t row = items.item_rows[item];
        const bool exists = row >= 0 && row < items.rows;
        const int64_t id = items.ids[exists ? row : 0];
        return exists ? id : otherwise;
    };
    const auto id_or_more = [&](int64_t item) { return id_at(item, std::numeric_limits<int64_t>::max()); };
    for (int64_t start = 0; start < count; start += kSearchedTogether) {
        const int64_t together = std::min(kSearchedTogether, count - start);
        int64_t wanted[kSearchedTogether], first[kSearchedTogether];
        std::copy_n(ids + start, together, wanted);
        search_together(none ? 0 : items.items, id_or_more, wanted, together, first);
        for (int64_t i = 0; i < together; ++i) {
            const bool found = !none && wanted[i] >= 0 && id_at(first[i], -1) == wanted[i];
            places[start + i] = found ? first[i] : -1;
        }
    }
}

}  // namespace silvertriton::cpu
