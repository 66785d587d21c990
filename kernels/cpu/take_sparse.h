// take_sparse in plain C++, for the instruction sets that have nothing better.
#pragma once

#include "silvertriton/layout.h"

namespace silvertriton::cpu {

inline int64_t take_sparse(uint32_t* masks, int64_t blocks, int64_t most, int32_t first_row, int32_t* rows) {
    int64_t taken = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0 || count_bits(masks[b]) > most) continue;
        for (uint32_t bits = masks[b]; bits != 0; bits &= bits - 1)
            rows[taken++] = first_row + static_cast<int32_t>(b * kBlockRows) + __builtin_ctz(bits);
        masks[b] = 0;
    }
    return taken;
}

}  // namespace silvertriton::cpu
