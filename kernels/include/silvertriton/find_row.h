// From item ids, which come with requests, to rows.
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton {

// The place of an item id among the ascending ids, or -1.
ST_HOST_DEVICE inline int64_t find_item(const ItemIds& items, int64_t id) {
    int64_t first = 0, last = items.items;
    while (first < last) {
        const int64_t middle = first + (last - first) / 2;
        const int32_t row = items.item_rows[middle];
        if (row < 0 || row >= items.rows) return -1;
        if (items.ids[row] == id) return middle;
        if (items.ids[row] < id) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return -1;
}

// The row of an item id, or -1.
ST_HOST_DEVICE inline int32_t find_row(const ItemIds& items, int64_t id) {
    const int64_t item = find_item(items, id);
    return item < 0 ? -1 : items.item_rows[item];
}

}  // namespace silvertriton
