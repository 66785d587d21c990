// Rows that lie scattered in memory.
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton::cpu {

// Asks memory for a row of RowCodes.
inline void ask_for_row(const int32_t* row, int64_t width) {
    constexpr int64_t kLineWords = 16;
    for (int64_t word = 0; word < width; word += kLineWords) __builtin_prefetch(row + word);
    if (width % 8 != 0) __builtin_prefetch(row + width - 1);  // it may reach into one line more
}

// Calls body(i, row) for fp16 rows row_at(0), row_at(1), ..., asking for them ahead of time. All of them must exist.
template <typename RowAt, typename Body>
void for_each_row(const RowVectors& vectors, int64_t count, RowAt row_at, Body body) {
    constexpr int64_t kAhead = 8, kLine = 64;
    const int64_t bytes = 2 * vectors.dims;
    const auto ask = [&](int64_t i) {
        const int64_t row = row_at(i);
        const char* first = reinterpret_cast<const char*>(vectors.vectors + row * vectors.dims);
        for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(first + byte);
        __builtin_prefetch(vectors.scales + row);
    };
    for (int64_t i = 0; i < kAhead && i < count; ++i) ask(i);
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) ask(i + kAhead);
        body(i, row_at(i));
    }
}

}  // namespace silvertriton::cpu
