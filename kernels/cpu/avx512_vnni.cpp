// AVX-512 with VNNI. Only the functions marked ST_AVX512 hold its instructions.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "rows.h"
#include "silvertriton/instruction_set.h"

#define ST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,popcnt")))

namespace silvertriton {
namespace {

// vpdpbusd multiplies unsigned by signed bytes: a code xor 0x80 is code + 128 as an unsigned byte, and the 128 * sum
// of query codes it adds was taken off the accumulator's start. Its int32 sums wrap, so only the result must fit.
ST_AVX512 inline __m512i add_products(__m512i sums, const int8_t* codes, __m512i query) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
    return _mm512_dpbusd_epi32(sums, _mm512_xor_si512(_mm512_loadu_si512(codes), offset), query);
}

// packed_hit of the scores whose bit is set, none of which is NaN. Writes whole vectors: up to the end of the room for
// all sixteen, whatever there is. Returns how many count.
ST_AVX512 inline int64_t append_hits(__m512 scores, int32_t first_row, uint32_t reached, uint64_t* hits) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));  // -0 becomes +0
    const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
    const __m512i keys = _mm512_xor_si512(bits, flip);
    const __m512i rows = _mm512_sub_epi32(_mm512_set1_epi32(-1 - first_row), lanes);
    const auto append = [&](__m256i key, __m256i row, uint32_t chosen) ST_AVX512 {
        const __m512i high = _mm512_slli_epi64(_mm512_cvtepu32_epi64(key), 32);
        const __m512i hit = _mm512_or_si512(high, _mm512_cvtepu32_epi64(row));
        _mm512_storeu_si512(hits, _mm512_maskz_compress_epi64(static_cast<__mmask8>(chosen), hit));
        hits += _mm_popcnt_u32(chosen);
    };
    append(_mm512_castsi512_si256(keys), _mm512_castsi512_si256(rows), reached & 0xffu);
    append(_mm512_extracti64x4_epi64(keys, 1), _mm512_extracti64x4_epi64(rows, 1), reached >> 8);
    return _mm_popcnt_u32(reached);
}

ST_AVX512 int64_t scan_blocks(const int8_t* codes, const float* scales, const Spreads& spreads, const uint32_t* masks,
                              int64_t blocks, int32_t first_row, const QueryCodes& query, float floor,
                              const NextBlocks& next, uint64_t* hits) {
    const int64_t groups = query.group_count, bytes = groups * kBlockRows * 4;
    const __m512i bias = _mm512_set1_epi32(query.unsigned_bias);
    const __m512 floors = _mm512_set1_ps(floor), reach = _mm512_set1_ps(spreads.reach);
    int64_t written = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0) continue;
        const int8_t* block = codes + b * bytes;
        if (b < next.blocks) {
            const int8_t* asked = next.codes + b * bytes;
            for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(asked + line, _MM_HINT_T1);
            _mm_prefetch(next.scales + b * kBlockRows, _MM_HINT_T1);
            _mm_prefetch(next.scales + b * kBlockRows + 16, _MM_HINT_T1);
        }
        // Even and odd groups have their own accumulators: one chain of vpdpbusd is bound by its latency.
        __m512i even0 = bias, even1 = bias, odd0 = _mm512_setzero_si512(), odd1 = odd0;
        int64_t j = 0;
        for (; j + 2 <= groups; j += 2) {
            const int8_t* at = block + j * kBlockRows * 4;
            const __m512i q0 = _mm512_set1_epi32(query.groups[j]), q1 = _mm512_set1_epi32(query.groups[j + 1]);
            even0 = add_products(even0, at, q0);
            even1 = add_products(even1, at + 64, q0);
            odd0 = add_products(odd0, at + 128, q1);
            odd1 = add_products(odd1, at + 192, q1);
        }
        if (j < groups) {
            const int8_t* at = block + j * kBlockRows * 4;
            const __m512i q = _mm512_set1_epi32(query.groups[j]);
            even0 = add_products(even0, at, q);
            even1 = add_products(even1, at + 64, q);
        }
        const float* scale = scales + b * kBlockRows;
        __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even0, odd0)), _mm512_loadu_ps(scale));
        __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even1, odd1)), _mm512_loadu_ps(scale + 16));
        if (spreads.spreads != nullptr) {
            const float* spread = spreads.spreads + b * kBlockRows;
            low = _mm512_add_ps(low, _mm512_mul_ps(reach, _mm512_loadu_ps(spread)));
            high = _mm512_add_ps(high, _mm512_mul_ps(reach, _mm512_loadu_ps(spread + 16)));
        }
        uint32_t reached = _mm512_cmp_ps_mask(low, floors, _CMP_GE_OQ) |
                           static_cast<uint32_t>(_mm512_cmp_ps_mask(high, floors, _CMP_GE_OQ)) << 16;
        reached &= masks[b];
        if (reached == 0) continue;
        const int32_t row = first_row + static_cast<int32_t>(b * kBlockRows);
        written += append_hits(low, row, reached & 0xffffu, hits + written);
        written += append_hits(high, row + 16, reached >> 16, hits + written);
    }
    return written;
}

ST_AVX512 inline int32_t row_sum(const int32_t* row, int64_t width, const QueryCodes& query) {
    const __m128i offset = _mm_set1_epi8(static_cast<char>(0x80));
    __m128i sums = _mm_setzero_si128();
    for (int64_t j = 0; j < width; j += 4) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j));
        const __m128i factors = _mm_loadu_si128(reinterpret_cast<const __m128i*>(query.groups + j));
        sums = _mm_dpbusd_epi32(sums, _mm_xor_si128(codes, offset), factors);
    }
    const __m128i two = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
    const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
    return static_cast<int32_t>(static_cast<uint32_t>(query.unsigned_bias) + static_cast<uint32_t>(sum));  // it wraps
}

// Whole vectors of row numbers, compressed to the bits that are set: no branch on how many those are.
ST_AVX512 int64_t take_sparse(uint32_t* masks, int64_t blocks, int64_t most, int32_t first_row, int32_t* rows) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t taken = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        const uint32_t mask = masks[b], low = mask & 0xffffu, high = mask >> 16;
        if (mask == 0 || _mm_popcnt_u32(mask) > most) continue;
        const int32_t row = first_row + static_cast<int32_t>(b * kBlockRows);
        const __m512i first = _mm512_add_epi32(lanes, _mm512_set1_epi32(row));
        const __m512i second = _mm512_add_epi32(lanes, _mm512_set1_epi32(row + 16));
        _mm512_storeu_si512(rows + taken, _mm512_maskz_compress_epi32(static_cast<__mmask16>(low), first));
        taken += _mm_popcnt_u32(low);
        _mm512_storeu_si512(rows + taken, _mm512_maskz_compress_epi32(static_cast<__mmask16>(high), second));
        taken += _mm_popcnt_u32(high);
        masks[b] = 0;
    }
    return taken;
}

ST_AVX512 float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    __m512 lanes = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= dims; i += 16) {
        const __m512 values = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i)));
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(values, _mm512_loadu_ps(query + i)));
    }
    if (i < dims) {
        const __mmask16 tail = static_cast<__mmask16>((1u << (dims - i)) - 1);
        const __m512 values = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(tail, row + i));
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(values, _mm512_loadu_ps(query + i)));
    }
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

ST_AVX512 inline void halves_to_floats(const uint16_t* halves, float scale, float* floats) {
    const __m512 values = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    _mm512_storeu_ps(floats, _mm512_mul_ps(values, _mm512_set1_ps(scale)));
}

#define ST_TARGET ST_AVX512
#define ST_SCAN_ROWS scan_rows
#define ST_ROW_SUM row_sum
#include "scan_rows.h"
#define ST_COUNT_BITS __builtin_popcountll
#include "word_functions.h"
#define ST_DENSE_ROWS 6
#define ST_DENSE_VECTORS 4
#define ST_HALVES halves_to_floats
#include "dense.h"

}  // namespace

const InstructionSet kAvx512Vnni{"avx512vnni", scan_blocks, scan_rows, take_sparse, dot_row,   add_layer,
                                 from_halves,  and_words,   or_words,  xor_words,   not_words, count_words};

}  // namespace silvertriton

#endif
