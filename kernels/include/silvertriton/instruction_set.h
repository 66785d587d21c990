// The contract of the CPU kernels that exist once per instruction set, as one table of functions.
//
// Every set returns the same bits:
// - sums of code products are int32 and exact (any order) up to kMaxDims components; nothing saturates on the way;
// - float sums are float32 in one fixed order: component i goes to lane i mod 16, each lane adds its products in
//   ascending order, multiply and add rounded separately (no fused multiply-add), then lanes l and l + 8 are added,
//   then l and l + 4, l + 2, l + 1; those of a layer add one product after the other.
// Ties are not broken here: scan_blocks reports every row that reaches the floor, the callers order them (order.h).
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"
#include "silvertriton/order.h"

namespace silvertriton {

// A query prepared for every instruction set.
struct QueryCodes {
    const int32_t* groups;  // [D4] four int8 codes each, first component in the low byte; zero past D, and four more
    int64_t group_count;    // D4
    int32_t unsigned_bias;  // -128 * sum of codes: takes back the offset of codes read as unsigned bytes
};

// Blocks that are read after those of a call, asked of memory while it runs: a cluster is too short for the processor
// to see the next one coming, and without this a scan waits for memory half of its time (docs/performance.md).
struct NextBlocks {
    const int8_t* codes;
    const float* scales;
    int64_t blocks;  // 0: nothing
};

// What is added to the score of each row: reach * spreads[row], both steps rounded apart.
struct Spreads {
    const float* spreads;  // [blocks, 32], null: nothing
    float reach;
};

inline Spreads from_block(const Spreads& spreads, int64_t block) {
    return {spreads.spreads == nullptr ? nullptr : spreads.spreads + block * kBlockRows, spreads.reach};
}

struct InstructionSet {
    const char* name;

    // Scores the masked rows of `blocks` consecutive blocks ([blocks, D4, 32, 4] bytes, no alignment):
    // float(sum over components of code * query code) * scale, and what `spreads` adds. Appends packed_hit(score,
    // first_row + 32 b + r) to `hits` for each row whose bit is set in masks[b] and whose score is >= floor (never one
    // that is NaN), rows ascending, and returns how many. `hits` has room for all 32 * blocks. `next` changes no
    // result.
    int64_t (*scan_blocks)(const int8_t* codes, const float* scales, const Spreads& spreads, const uint32_t* masks,
                           int64_t blocks, int32_t first_row, const QueryCodes& query, float floor,
                           const NextBlocks& next, uint64_t* hits);

    // Scores `count` rows that lie scattered in `codes` (RowCodes, of as many dims as `query`), as scan_blocks does:
    // the same bits. Appends packed_hit(score, rows[i]) to `hits` for each whose score is >= floor, in order, and
    // returns how many. `hits` has room for all.
    int64_t (*scan_rows)(const int32_t* codes, const int32_t* rows, int64_t count, const QueryCodes& query, float floor,
                         uint64_t* hits);

    // Takes the rows of the blocks in which at most `most` rows are set out of `masks`: writes first_row + 32 b + r of
    // each to `rows`, ascending, and 0 to masks[b]. Returns how many. `rows` has room for 16 more than all 32 * blocks.
    int64_t (*take_sparse)(uint32_t* masks, int64_t blocks, int64_t most, int32_t first_row, int32_t* rows);

    // Dot product of one fp16 row [D] with a float32 query, zero-padded to a multiple of 16 components.
    float (*dot_row)(const uint16_t* row, const float* query, int64_t dims);

    // Adds a layer's products to `sums` [rows, width]: inputs[r, k] * weights[k, n], k ascending, multiply and add
    // rounded separately. Rows of `inputs` begin `stride` floats apart; `width` is a multiple of 16.
    void (*add_layer)(const float* inputs, int64_t rows, int64_t stride, const float* weights, int64_t depth,
                      int64_t width, float* sums);

    // One fp16 row times a scale.
    void (*from_halves)(const uint16_t* row, int64_t count, float scale, float* floats);

    // out = a & b, a | b, a ^ b, ~a, word by word; `out` may be `a`.
    void (*and_words)(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out);
    void (*or_words)(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out);
    void (*xor_words)(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out);
    void (*not_words)(const uint32_t* a, int64_t count, uint32_t* out);

    // Set bits of `count` words.
    int64_t (*count_words)(const uint32_t* words, int64_t count);
};

extern const InstructionSet kPortable;
#if defined(__x86_64__)
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512Vnni;
#elif defined(__aarch64__)
extern const InstructionSet kNeon;
extern const InstructionSet kNeonDotprod;
#endif

// The best set this machine has, or the one SILVERTRITON_ISA names (portable, avx2, avx512vnni, neon, neon-dotprod).
// Throws std::runtime_error when that value is unknown or the machine lacks it.
const InstructionSet& instruction_set();

// Changes the set for the whole process from now on ("" returns to the default): for tests and benchmarks.
void force_instruction_set(const char* name);

}  // namespace silvertriton
