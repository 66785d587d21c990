// NEON, which every aarch64 processor has, and NEON with the dot products of int8 (FEAT_DotProd: optional from ARMv8.2
// on). Only the functions marked ST_DOTPROD hold the latter's instructions.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "prefetch.h"
#include "rows.h"
#include "silvertriton/instruction_set.h"
#include "take_sparse.h"

#define ST_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))

namespace silvertriton {
namespace {

constexpr int kVectorRows = 4;
constexpr int kVectors = kBlockRows / kVectorRows;  // one group of four components of a block
constexpr int64_t kGroupBytes = kBlockRows * 4;

// Into the second-level cache.
inline void ask_for_block(const NextBlocks& next, int64_t block, int64_t bytes) {
    if (block >= next.blocks) return;
    cpu::ask(next.codes + block * bytes, bytes);
    cpu::ask(next.scales + block * kBlockRows, kBlockRows * 4);
}

inline int8x16_t all_lanes(int32_t group) {
    return vreinterpretq_s8_s32(vdupq_n_s32(group));
}

// One bit per row: 32 lanes of all ones or none. There is no instruction for it: the lanes are narrowed to bytes, each
// byte keeps the bit of its place, and pairwise sums bring eight of them together three times.
inline uint32_t bits_of(const uint32x4_t* lanes) {
    const uint8x16_t places = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    uint8x16_t bytes[2];
    for (int half = 0; half < 2; ++half) {
        const uint32x4_t* at = lanes + 4 * half;
        const uint16x8_t low = vmovn_high_u32(vmovn_u32(at[0]), at[1]), high = vmovn_high_u32(vmovn_u32(at[2]), at[3]);
        bytes[half] = vandq_u8(vmovn_high_u16(vmovn_u16(low), high), places);
    }
    const uint8x16_t pairs = vpaddq_u8(bytes[0], bytes[1]), fours = vpaddq_u8(pairs, pairs);
    return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(fours, fours)), 0);
}

// The end of a block: scores of the sums, and hits of the masked rows that reach the floor. Returns how many.
inline int64_t append_hits(const int32x4_t* sums, const float* scales, const Spreads& spreads, float32x4_t floors,
                           uint32_t mask, int32_t first_row, uint64_t* hits) {
    float32x4_t scores[kVectors];
    uint32x4_t at_least[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        scores[v] = vmulq_f32(vcvtq_f32_s32(sums[v]), vld1q_f32(scales + kVectorRows * v));
        if (spreads.spreads != nullptr)
            scores[v] = vaddq_f32(scores[v], vmulq_n_f32(vld1q_f32(spreads.spreads + kVectorRows * v), spreads.reach));
        at_least[v] = vcgeq_f32(scores[v], floors);  // false where a score is NaN
    }
    uint32_t reached = bits_of(at_least) & mask;
    if (reached == 0) return 0;
    float stored[kBlockRows];
    for (int v = 0; v < kVectors; ++v) vst1q_f32(stored + kVectorRows * v, scores[v]);
    int64_t written = 0;
    for (; reached != 0; reached &= reached - 1) {
        const int32_t r = __builtin_ctz(reached);
        hits[written++] = packed_hit(stored[r], first_row + r);
    }
    return written;
}

// sdot multiplies signed bytes and adds the four products of a row to its int32 sum, which wraps: only the result must
// fit. Eight sums are enough independent chains for its latency. `kLane` picks one of four groups of the query.
template <int kLane>
ST_DOTPROD inline void add_products(int32x4_t* sums, const int8_t* codes, int8x16_t query) {
    for (int v = 0; v < kVectors; ++v) sums[v] = vdotq_laneq_s32(sums[v], vld1q_s8(codes + 16 * v), query, kLane);
}

ST_DOTPROD int64_t scan_blocks_dotprod(const int8_t* codes, const float* scales, const Spreads& spreads,
                                       const uint32_t* masks, int64_t blocks, int32_t first_row,
                                       const QueryCodes& query, float floor, const NextBlocks& next, uint64_t* hits) {
    const int64_t groups = query.group_count, bytes = groups * kGroupBytes;
    const float32x4_t floors = vdupq_n_f32(floor);
    int64_t written = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0) continue;
        ask_for_block(next, b, bytes);
        const int8_t* at = codes + b * bytes;
        int32x4_t sums[kVectors];
        for (int v = 0; v < kVectors; ++v) sums[v] = vdupq_n_s32(0);
        int64_t j = 0;
        for (; j + 4 <= groups; j += 4, at += 4 * kGroupBytes) {
            const int8x16_t q = vreinterpretq_s8_s32(vld1q_s32(query.groups + j));
            add_products<0>(sums, at, q);
            add_products<1>(sums, at + kGroupBytes, q);
            add_products<2>(sums, at + 2 * kGroupBytes, q);
            add_products<3>(sums, at + 3 * kGroupBytes, q);
        }
        for (; j < groups; ++j, at += kGroupBytes) add_products<0>(sums, at, all_lanes(query.groups[j]));
        written += append_hits(sums, scales + b * kBlockRows, from_block(spreads, b), floors, masks[b],
                               first_row + static_cast<int32_t>(b * kBlockRows), hits + written);
    }
    return written;
}

// Without sdot: products in int16, neighbours added there (|code| <= 128 and |query code| <= 127 make at most
// 2 * 128 * 127 = 32,512, which fits), and those sums once more to the row's int32.
inline void add_products(int32x4_t* sums, const int8_t* codes, int8x16_t query) {
    for (int v = 0; v < kVectors; ++v) {
        const int8x16_t code = vld1q_s8(codes + 16 * v);
        const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(query)), high = vmull_high_s8(code, query);
        sums[v] = vpadalq_s16(sums[v], vpaddq_s16(low, high));
    }
}

int64_t scan_blocks(const int8_t* codes, const float* scales, const Spreads& spreads, const uint32_t* masks,
                    int64_t blocks, int32_t first_row, const QueryCodes& query, float floor, const NextBlocks& next,
                    uint64_t* hits) {
    const int64_t bytes = query.group_count * kGroupBytes;
    const float32x4_t floors = vdupq_n_f32(floor);
    int64_t written = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0) continue;
        ask_for_block(next, b, bytes);
        const int8_t* at = codes + b * bytes;
        int32x4_t sums[kVectors];
        for (int v = 0; v < kVectors; ++v) sums[v] = vdupq_n_s32(0);
        for (int64_t j = 0; j < query.group_count; ++j, at += kGroupBytes) {
            add_products(sums, at, all_lanes(query.groups[j]));
        }
        written += append_hits(sums, scales + b * kBlockRows, from_block(spreads, b), floors, masks[b],
                               first_row + static_cast<int32_t>(b * kBlockRows), hits + written);
    }
    return written;
}

inline int8x16_t four_groups(const int32_t* groups) {
    return vreinterpretq_s8_s32(vld1q_s32(groups));
}

ST_DOTPROD inline int32_t row_sum_dotprod(const int32_t* row, int64_t width, const QueryCodes& query) {
    int32x4_t sums = vdupq_n_s32(0);
    for (int64_t j = 0; j < width; j += 4) sums = vdotq_s32(sums, four_groups(row + j), four_groups(query.groups + j));
    return vaddvq_s32(sums);
}

inline int32_t row_sum(const int32_t* row, int64_t width, const QueryCodes& query) {
    int32x4_t sums = vdupq_n_s32(0);
    for (int64_t j = 0; j < width; j += 4) {
        const int8x16_t code = four_groups(row + j), factor = four_groups(query.groups + j);
        const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(factor)), high = vmull_high_s8(code, factor);
        sums = vpadalq_s16(sums, vpaddq_s16(low, high));
    }
    return vaddvq_s32(sums);
}

#define ST_TARGET ST_DOTPROD
#define ST_SCAN_ROWS scan_rows_dotprod
#define ST_ROW_SUM row_sum_dotprod
#include "scan_rows.h"
#undef ST_TARGET

// Four of the sixteen lanes; products and sums are rounded apart, as the contract asks.
inline float32x4_t add_halves(float32x4_t lanes, const uint16_t* halves, const float* query) {
    const float32x4_t values = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
    return vaddq_f32(lanes, vmulq_f32(values, vld1q_f32(query)));
}

float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    // By name: in an array GCC 12 copies them each round.
    float32x4_t lanes0 = vdupq_n_f32(0.0f), lanes4 = lanes0, lanes8 = lanes0, lanes12 = lanes0;
    const auto add_sixteen = [&](const uint16_t* halves, const float* components) {
        lanes0 = add_halves(lanes0, halves, components);
        lanes4 = add_halves(lanes4, halves + 4, components + 4);
        lanes8 = add_halves(lanes8, halves + 8, components + 8);
        lanes12 = add_halves(lanes12, halves + 12, components + 12);
    };
    int64_t i = 0;
    for (; i + 16 <= dims; i += 16) add_sixteen(row + i, query + i);
    if (i < dims) {
        uint16_t tail[16] = {};
        std::memcpy(tail, row + i, static_cast<size_t>(dims - i) * sizeof(uint16_t));
        add_sixteen(tail, query + i);
    }
    const float32x4_t four = vaddq_f32(vaddq_f32(lanes0, lanes8), vaddq_f32(lanes4, lanes12));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline void halves_to_floats(const uint16_t* halves, float scale, float* floats) {
    for (int l = 0; l < 16; l += 4)
        vst1q_f32(floats + l, vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + l))), scale));
}

#define ST_TARGET
#define ST_SCAN_ROWS scan_rows
#define ST_ROW_SUM row_sum
#include "scan_rows.h"
#define ST_COUNT_BITS __builtin_popcountll  // cnt and addv
#include "word_functions.h"
#define ST_DENSE_ROWS 3
#define ST_DENSE_VECTORS 2
#define ST_HALVES halves_to_floats
#include "dense.h"

}  // namespace

const InstructionSet kNeon{"neon",      scan_blocks, scan_rows, cpu::take_sparse, dot_row,   add_layer,
                           from_halves, and_words,   or_words,  xor_words,        not_words, count_words};
const InstructionSet kNeonDotprod{"neon-dotprod", scan_blocks_dotprod, scan_rows_dotprod, cpu::take_sparse,
                                  dot_row,        add_layer,           from_halves,       and_words,
                                  or_words,       xor_words,           not_words,         count_words};

}  // namespace silvertriton

#endif
