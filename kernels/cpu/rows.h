// Rows that lie scattered in memory.
#pragma once

#include <cstdint>

#include "prefetch.h"
#include "silvertriton/layout.h"

namespace silvertriton::cpu {

// Asks memory for a row of RowCodes.
inline void ask_for_row(const int32_t* row, int64_t width) {
    ask(row, 4 * width);
    if (width % 8 != 0) ask(row + width - 1);  // it may reach into one line more
}

// Calls body(i, row) for fp16 rows row_at(0), row_at(1), ..., asking for them ahead of time. All of them must exist.
template <typename RowAt, typename Body>
void for_each_row(const RowVectors& vectors, int64_t count, RowAt row_at, Body body) {
    constexpr int64_t kAhead = 8;
    const auto ask_for = [&](int64_t i) {
        const int64_t row = row_at(i);
        ask(vectors.vectors + row * vectors.dims, 2 * vectors.dims);
        ask(vectors.scales + row);
    };
    for (int64_t i = 0; i < kAhead && i < count; ++i) ask_for(i);
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) ask_for(i + kAhead);
        body(i, row_at(i));
    }
}

}  // namespace silvertriton::cpu
