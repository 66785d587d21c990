// AVX2 with F16C and POPCNT (every AVX2 processor has both). Only the functions marked ST_AVX2 hold its instructions.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "rows.h"
#include "silvertriton/instruction_set.h"
#include "take_sparse.h"

#define ST_AVX2 __attribute__((target("avx2,f16c,popcnt")))

namespace silvertriton {
namespace {

// maddubs multiplies unsigned by signed bytes and adds pairs in int16: |code| <= 128 and |query code| <= 127 make at
// most 2 * 128 * 127 = 32,512, below its saturation.
ST_AVX2 inline __m256i add_products(__m256i sums, const int8_t* codes, __m256i query) {
    const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(query, code));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

ST_AVX2 int64_t scan_blocks(const int8_t* codes, const float* scales, const Spreads& spreads, const uint32_t* masks,
                            int64_t blocks, int32_t first_row, const QueryCodes& query, float floor,
                            const NextBlocks& next, uint64_t* hits) {
    const int64_t bytes = query.group_count * kBlockRows * 4;
    const __m256 floors = _mm256_set1_ps(floor);
    alignas(32) float scores[kBlockRows];
    int64_t written = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (masks[b] == 0) continue;
        const int8_t* block = codes + b * bytes;
        __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                           _mm256_setzero_si256()};
        for (int64_t j = 0; j < query.group_count; ++j) {
            const __m256i q = _mm256_set1_epi32(query.groups[j]);
            const int8_t* at = block + j * kBlockRows * 4;
            if (b < next.blocks) {
                const int8_t* asked = next.codes + b * bytes + j * kBlockRows * 4;
                _mm_prefetch(asked, _MM_HINT_T1);
                _mm_prefetch(asked + 64, _MM_HINT_T1);
            }
            for (int part = 0; part < 4; ++part) sums[part] = add_products(sums[part], at + 32 * part, q);
        }
        uint32_t reached = 0;
        for (int part = 0; part < 4; ++part) {
            const __m256 scale = _mm256_loadu_ps(scales + b * kBlockRows + 8 * part);
            __m256 score = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[part]), scale);
            if (spreads.spreads != nullptr) {
                const __m256 spread = _mm256_loadu_ps(spreads.spreads + b * kBlockRows + 8 * part);
                score = _mm256_add_ps(score, _mm256_mul_ps(_mm256_set1_ps(spreads.reach), spread));
            }
            _mm256_store_ps(scores + 8 * part, score);
            const int mask = _mm256_movemask_ps(_mm256_cmp_ps(score, floors, _CMP_GE_OQ));
            reached |= static_cast<uint32_t>(mask) << (8 * part);
        }
        for (reached &= masks[b]; reached != 0; reached &= reached - 1) {
            const int32_t r = __builtin_ctz(reached);
            hits[written++] = packed_hit(scores[r], first_row + static_cast<int32_t>(b * kBlockRows) + r);
        }
    }
    return written;
}

ST_AVX2 inline int32_t row_sum(const int32_t* row, int64_t width, const QueryCodes& query) {
    __m128i sums = _mm_setzero_si128();
    for (int64_t j = 0; j < width; j += 4) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j));
        const __m128i factors = _mm_loadu_si128(reinterpret_cast<const __m128i*>(query.groups + j));
        const __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(codes), _mm_sign_epi8(factors, codes));
        sums = _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    }
    const __m128i two = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// Eight lanes; products and sums are rounded apart, as the contract asks.
ST_AVX2 inline __m256 add_halves(__m256 lanes, __m128i halves, const float* query) {
    return _mm256_add_ps(lanes, _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_loadu_ps(query)));
}

ST_AVX2 float dot_row(const uint16_t* row, const float* query, int64_t dims) {
    __m256 low = _mm256_setzero_ps(), high = low;
    int64_t i = 0;
    for (; i + 16 <= dims; i += 16) {
        low = add_halves(low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)), query + i);
        high = add_halves(high, _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i + 8)), query + i + 8);
    }
    if (i < dims) {
        uint16_t tail[16] = {};
        std::memcpy(tail, row + i, static_cast<size_t>(dims - i) * sizeof(uint16_t));
        low = add_halves(low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(tail)), query + i);
        high = add_halves(high, _mm_loadu_si128(reinterpret_cast<const __m128i*>(tail + 8)), query + i + 8);
    }
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

ST_AVX2 inline void halves_to_floats(const uint16_t* halves, float scale, float* floats) {
    for (int l = 0; l < 16; l += 8) {
        const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + l)));
        _mm256_storeu_ps(floats + l, _mm256_mul_ps(values, _mm256_set1_ps(scale)));
    }
}

#define ST_TARGET ST_AVX2
#define ST_SCAN_ROWS scan_rows
#define ST_ROW_SUM row_sum
#include "scan_rows.h"
#define ST_COUNT_BITS __builtin_popcountll
#include "word_functions.h"
#define ST_DENSE_ROWS 3
#define ST_DENSE_VECTORS 2
#define ST_HALVES halves_to_floats
#include "dense.h"

}  // namespace

const InstructionSet kAvx2{"avx2",      scan_blocks, scan_rows, cpu::take_sparse, dot_row,   add_layer,
                           from_halves, and_words,   or_words,  xor_words,        not_words, count_words};

}  // namespace silvertriton

#endif
