// Plain C++: the baseline of every machine, written so that compilers vectorise it.

#include <cstring>

#include "rows.h"
#include "silvertriton/half.h"
#include "silvertriton/instruction_set.h"
#include "take_sparse.h"

namespace silvertriton {
namespace {

constexpr int kLanes = 16;

// Codes are within [-127, 127]: a pair of products is at most 32,258 and fits int16, so that compilers find the
// multiply-and-add-pairs instructions. The loops over rows inside are what they vectorise.
void add_products(const int8_t* codes, const int8_t* query, int32_t* sums) {
    for (int r = 0; r < kBlockRows; ++r) {
        const int8_t* code = codes + 4 * r;
        const int16_t low = static_cast<int16_t>(code[0] * query[0] + code[1] * query[1]);
        const int16_t high = static_cast<int16_t>(code[2] * query[2] + code[3] * query[3]);
        sums[r] += low + high;
    }
}

int64_t scan_blocks(const int8_t* codes, const float* scales, const Spreads& spreads, const uint32_t* masks,
                    int64_t blocks, int32_t first_row, const QueryCodes& query, float floor, const NextBlocks&,
                    uint64_t* hits) {
    int64_t written = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0) continue;
        int32_t sums[kBlockRows] = {};
        for (int64_t j = 0; j < query.group_count; ++j) {
            int8_t group[4];
            std::memcpy(group, query.groups + j, 4);
            add_products(codes + (b * query.group_count + j) * kBlockRows * 4, group, sums);
        }
        for (int r = 0; r < kBlockRows; ++r) {
            const int64_t row = b * kBlockRows + r;
            float score = static_cast<float>(sums[r]) * scales[row];
            if (spreads.spreads != nullptr) score += spreads.reach * spreads.spreads[row];
            if (score >= floor && masks[b] >> r & 1)
                hits[written++] = packed_hit(score, first_row + static_cast<int32_t>(b * kBlockRows) + r);
        }
    }
    return written;
}

int32_t row_sum(const int32_t* row, int64_t, const QueryCodes& query) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(row);
    const int8_t* factors = reinterpret_cast<const int8_t*>(query.groups);
    int32_t sum = 0;
    for (int64_t c = 0; c < 4 * query.group_count; ++c) sum += codes[c] * factors[c];
    return sum;
}

float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= dims; i += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += from_half(row[i + l]) * query[i + l];
    for (int l = 0; i + l < dims; ++l) lanes[l] += from_half(row[i + l]) * query[i + l];
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    return lanes[0];
}

inline int64_t count_pair(uint64_t pair) {
    return count_bits(static_cast<uint32_t>(pair)) + count_bits(static_cast<uint32_t>(pair >> 32));
}

inline void halves_to_floats(const uint16_t* halves, float scale, float* floats) {
    for (int l = 0; l < kLanes; ++l) floats[l] = from_half(halves[l]) * scale;
}

#define ST_TARGET
#define ST_SCAN_ROWS scan_rows
#define ST_ROW_SUM row_sum
#include "scan_rows.h"
#define ST_COUNT_BITS count_pair
#include "word_functions.h"
#define ST_DENSE_ROWS 2
#define ST_DENSE_VECTORS 1
#define ST_HALVES halves_to_floats
#include "dense.h"

}  // namespace

const InstructionSet kPortable{"portable",  scan_blocks, scan_rows, cpu::take_sparse, dot_row,   add_layer,
                               from_halves, and_words,   or_words,  xor_words,        not_words, count_words};

}  // namespace silvertriton
