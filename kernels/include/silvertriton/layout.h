// The index layout of docs/operators.md, shared by CPU and CUDA: constants and views. A view is plain pointers and
// sizes; whoever makes one (kernels/torch) has checked dtypes, ranks and sizes.
#pragma once

#include <cstdint>

// Functions marked so run on the host and, once compiled by nvcc, on the device too.
#if defined(__CUDACC__)
#define ST_HOST_DEVICE __host__ __device__
#else
#define ST_HOST_DEVICE
#endif

namespace silvertriton {

// A block: one mask word, one warp, two AVX-512 vectors.
constexpr int64_t kBlockRows = 32;

// Codes and query codes are within [-127, 127], so a sum of D products fits int32 up to floor((2^31 - 1) / 127^2).
constexpr int64_t kMaxDims = 133144;

// What the operators find wrong with a request; the numbers are those of docs/wire-contract.md.
constexpr int32_t kStatusOk = 0;
constexpr int32_t kStatusQuery = 3;
constexpr int32_t kStatusFilterMalformed = 4;
constexpr int32_t kStatusFilterFingerprint = 5;
constexpr int32_t kStatusExclude = 6;
constexpr int32_t kStatusTaskWeights = 7;
constexpr int32_t kStatusSearch = 8;
constexpr int32_t kStatusIndex = 11;  // of CUDA, which cannot raise: the index contradicts itself

// Of two things wrong, the smaller number is reported.
ST_HOST_DEVICE constexpr int32_t first_status(int32_t a, int32_t b) {
    if (a == kStatusOk) return b;
    return b == kStatusOk || a < b ? a : b;
}

// Components are grouped by four, the width of one dot-product lane.
ST_HOST_DEVICE constexpr int64_t groups_of(int64_t dims) {
    return (dims + 3) / 4;
}

// Bytes of one block of codes: [D4, 32, 4].
ST_HOST_DEVICE constexpr int64_t block_bytes(int64_t dims) {
    return groups_of(dims) * kBlockRows * 4;
}

// Set bits, without an instruction for it: the baseline build has none, and a library call would cost more.
ST_HOST_DEVICE constexpr int32_t count_bits(uint32_t word) {
    word -= (word >> 1) & 0x55555555u;
    word = (word & 0x33333333u) + ((word >> 2) & 0x33333333u);
    return static_cast<int32_t>((((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}

// Whether a row is set in a mask [NB].
ST_HOST_DEVICE constexpr bool has_row(const uint32_t* words, int64_t row) {
    return (words[row / kBlockRows] >> (row % kBlockRows) & 1u) != 0;
}

// Where codes do not lie row by row too: set bits at most of a block whose rows are read from their fp16 components. A
// block costs its codes and scales in sequence; a row lies somewhere else, and costs its bytes and as much as some
// eight cache lines more.
ST_HOST_DEVICE constexpr int64_t sparse_vectors(int64_t dims, int64_t code_dims) {
    return (block_bytes(code_dims) + kBlockRows * 4) / (2 * dims + 512);
}

// int8 rows in blocks: items or centroids.
struct CodeBlocks {
    const int8_t* codes;  // [NB, D4, 32, 4]
    const float* scales;  // [NB, 32]
    int64_t blocks;       // NB
    int64_t dims;         // D
};

// The same codes row by row, for rows that are read one at a time: a row's groups of four codes, then the bits of its
// scale, then zeros up to whole vectors of four words.
struct RowCodes {
    const int32_t* words;  // [R, W], null: there are none

    // W: words of a row of `dims` codes.
    ST_HOST_DEVICE static constexpr int64_t width(int64_t dims) { return (groups_of(dims) + 4) / 4 * 4; }
};

// fp16 rows, row-major, each divided by its scale.
struct RowVectors {
    const uint16_t* vectors;  // [R, D] IEEE binary16, finite
    const float* scales;      // [R]
    int64_t rows;             // R
    int64_t dims;             // D
};

// Items by id.
struct ItemIds {
    const int64_t* ids;        // [R]
    const int32_t* item_rows;  // [N]: the rows by ascending id; they are checked, since ids are read there
    int64_t rows;              // R
    int64_t items;             // N
};

struct FilterIndex {
    ItemIds item_ids;
    const int32_t* feature_terms;                                                              // [NF + 1]
    const int64_t* term_keys;                                                                  // [T]
    const int32_t* term_bitmap;                                                                // [T]
    const int64_t* term_postings;                                                              // [T + 1]
    const int32_t* postings;                                                                   // [NP]
    const uint32_t* bitmaps;                                                                   // [NBM, NB]
    const int32_t* feature_number;                                                             // [NF]
    const double* number_values;                                                               // [NN, R]
    const int32_t* number_rows;                                                                // [NN, R]
    const int32_t* number_known;                                                               // [NN]
    const uint32_t* number_bitmaps;                                                            // [NN, Q - 1, NB]
    const uint32_t* valid;                                                                     // [NB]
    const int32_t* cluster_blocks;                                                             // [C + 1]
    int64_t features, terms, posting_count, bitmap_count, numbers, buckets, blocks, clusters;  // NF T NP NBM NN Q NB C

    ST_HOST_DEVICE int64_t rows() const { return blocks * kBlockRows; }
};

}  // namespace silvertriton
