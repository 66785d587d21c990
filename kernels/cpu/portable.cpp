// Plain C++: the baseline of every machine, written so that compilers vectorise it.

#include <cstring>

#include "silvertriton/instruction_set.h"

namespace silvertriton {
namespace {

constexpr int kLanes = 16;

uint32_t score_block(const int8_t* block, const float* scales, const QueryCodes& query, float floor, float* scores) {
    int32_t sums[kBlockRows] = {};
    for (int64_t j = 0; j < query.group_count; ++j) {
        int8_t q[4];
        std::memcpy(q, query.groups + j, 4);
        const int8_t* rows = block + j * kBlockRows * 4;
        for (int r = 0; r < kBlockRows; ++r) {
            const int8_t* code = rows + 4 * r;
            sums[r] += code[0] * q[0] + code[1] * q[1] + code[2] * q[2] + code[3] * q[3];
        }
    }
    uint32_t reached = 0;
    for (int r = 0; r < kBlockRows; ++r) {
        scores[r] = static_cast<float>(sums[r]) * scales[r];
        reached |= static_cast<uint32_t>(scores[r] >= floor) << r;
    }
    return reached;
}

// Exact for every finite half, subnormals included.
inline float from_half(uint16_t half) {
    const uint32_t magnitude = half & 0x7fffu;
    const uint32_t bits = (magnitude << 13) + (112u << 23);
    float normal;
    std::memcpy(&normal, &bits, sizeof normal);
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const float value = magnitude < 0x400u ? subnormal : normal;
    return half & 0x8000u ? -value : value;
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

void count_clusters(const uint32_t* words, const int32_t* cluster_blocks, int64_t clusters, int32_t* counts) {
    for (int64_t c = 0; c < clusters; ++c) {
        int32_t count = 0;
        for (int64_t b = cluster_blocks[c]; b < cluster_blocks[c + 1]; ++b) count += count_bits(words[b]);
        counts[c] = count;
    }
}

}  // namespace

const InstructionSet kPortable{"portable", score_block, dot_row, count_clusters};

}  // namespace silvertriton
