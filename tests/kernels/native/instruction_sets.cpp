// Runs every instruction set this machine has against the portable one, on inputs chosen to tell them apart, and the
// whole search under each. Needs no torch: the library's CPU sources are all it is linked with.
//
// Prints the sets, the best one first ("sets neon-dotprod neon portable"), and a digest of all results, which is that
// of any other machine. Says what differs and exits with 1 if something does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fenced.h"
#include "operators.h"
#include "parallel.h"
#include "random.h"
#include "random_index.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton {

// Serial, but with as many "threads" as the search is to believe in: it deals out its work by their number.
static int64_t threads = 1;

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t step = std::max(grain, (count + threads - 1) / threads);
    for (int64_t begin = 0; begin < count; begin += step) body(begin, std::min(begin + step, count));
}

int64_t thread_count() {
    return threads;
}

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

uint64_t digest = 0xcbf29ce484222325u;

template <typename T>
void note(const T* values, int64_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (size_t i = 0; i < static_cast<size_t>(count) * sizeof(T); ++i) digest = (digest ^ bytes[i]) * 0x100000001b3u;
}

[[noreturn]] void fail(const InstructionSet& set, const std::string& what) {
    std::printf("%s: %s\n", set.name, what.c_str());
    std::exit(1);
}

uint32_t bits_of(float value) {
    if (value != value) return 0x7fc00000u;  // which of the NaNs is each machine's own affair
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

std::string shown(float value) {
    char text[64];
    std::snprintf(text, sizeof text, "%a (%08x)", static_cast<double>(value), bits_of(value));
    return text;
}

// Every set this machine has, the best first, the portable one last.
std::vector<const InstructionSet*> find_sets() {
    std::vector<const InstructionSet*> sets;
    force_instruction_set("");
    const std::string best = instruction_set().name;
    for (const char* name : {"avx512vnni", "avx2", "neon-dotprod", "neon", "portable"}) {
        try {
            force_instruction_set(name);
        } catch (const std::runtime_error& error) {
            if (std::string(error.what()).find("expected one this machine has: ") == std::string::npos) throw;
            continue;
        }
        sets.push_back(&instruction_set());
        if (name != std::string(instruction_set().name)) fail(instruction_set(), "asked for " + std::string(name));
    }
    if (best != sets[0]->name) fail(*sets[0], "is not the default; that is " + best);
    return sets;
}

std::vector<const InstructionSet*> sets;

void check_scan_blocks(Random& random, int64_t groups, int64_t blocks) {
    const size_t rows = static_cast<size_t>(blocks * kBlockRows), quads = static_cast<size_t>(groups);
    const size_t bytes = quads * rows * 4;
    Fenced<int8_t> codes(bytes, random.below(2) == 0 ? 0 : static_cast<size_t>(random.below(16)));
    Fenced<float> scales(rows), values(rows);
    Fenced<uint32_t> masks(static_cast<size_t>(blocks));
    Fenced<int32_t> query(quads);

    const int code_kind = static_cast<int>(random.below(5)), query_kind = static_cast<int>(random.below(3));
    for (int8_t& code : codes) code = random_code(random, code_kind);
    int32_t query_sum = 0;
    int8_t* query_codes = reinterpret_cast<int8_t*>(query.data());
    for (size_t i = 0; i < 4 * quads; ++i) {
        query_codes[i] = query_kind == 2 ? int8_t{-127} : random_code(random, query_kind);
        query_sum += query_codes[i];
    }
    const int64_t scale_kind = random.below(5);
    constexpr float kOdd[] = {0.0f, -0.0f, 1e-38f, 1e-45f, 3e38f, -1.0f, 1.0f, kInfinity, -kInfinity, kNan};
    for (float& scale : scales) {
        scale = std::fabs(random.unit()) * 0.01f;
        if (scale_kind == 1) scale = random.any_of(kOdd);
        if (scale_kind == 2) scale = 0.5f;  // many ties
        if (scale_kind == 3) scale *= 1e-37f;
        if (scale_kind == 4 && random.below(20) == 0) scale *= 1e6f;
    }
    for (uint32_t& mask : masks) mask = random_mask(random);
    for (float& value : values) value = scale_kind == 1 ? random.any_of(kOdd) : random.unit();
    const Spreads spreads{random.below(2) == 0 ? nullptr : values.data(), 3.0f * random.unit()};

    // The definition.
    std::vector<float> scores(rows);
    std::vector<bool> masked(rows);
    for (int64_t row = 0; row < blocks * kBlockRows; ++row) {
        const int64_t b = row / kBlockRows, r = row % kBlockRows;
        int64_t sum = 0;
        for (int64_t j = 0; j < groups; ++j)
            for (int64_t c = 0; c < 4; ++c)
                sum += codes[static_cast<size_t>(((b * groups + j) * kBlockRows + r) * 4 + c)] * query_codes[4 * j + c];
        scores[static_cast<size_t>(row)] =
            static_cast<float>(static_cast<int32_t>(sum)) * scales[static_cast<size_t>(row)];
        if (spreads.spreads != nullptr)
            scores[static_cast<size_t>(row)] += spreads.reach * values[static_cast<size_t>(row)];
        masked[static_cast<size_t>(row)] = masks[static_cast<size_t>(b)] >> r & 1;
    }

    const QueryCodes prepared{query.data(), groups, static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(query_sum))};
    const float some = scores[static_cast<size_t>(random.below(static_cast<int64_t>(rows)))];
    const float floors[] = {-kInfinity, some, std::nextafter(some, kInfinity), -0.0f, kInfinity};
    const int32_t first_row = static_cast<int32_t>(random.below(1 << 20) * kBlockRows);
    for (const float floor : floors) {
        std::vector<uint64_t> expected;
        for (size_t row = 0; row < rows; ++row)
            if (masked[row] && scores[row] >= floor)
                expected.push_back(packed_hit(scores[row], first_row + static_cast<int32_t>(row)));
        note(expected.data(), static_cast<int64_t>(expected.size()));
        const NextBlocks next{codes.data(), scales.data(), random.below(2) * blocks};
        for (const InstructionSet* set : sets) {
            Fenced<uint64_t> hits(rows);
            const int64_t count = set->scan_blocks(codes.data(), scales.data(), spreads, masks.data(), blocks,
                                                   first_row, prepared, floor, next, hits.data());
            const std::vector<uint64_t> got(hits.data(), hits.data() + count);
            if (got == expected) continue;
            fail(*set, "scan_blocks: " + std::to_string(count) + " hits, expected " + std::to_string(expected.size()) +
                           "; groups " + std::to_string(groups) + ", blocks " + std::to_string(blocks) + ", codes " +
                           std::to_string(code_kind) + ", scales " + std::to_string(scale_kind) + ", floor " +
                           shown(floor));
        }
    }
}

// Rows in any order, some of them several times, as scan_blocks scores them without spreads.
void check_scan_rows(Random& random, int64_t groups, int64_t rows, int64_t count) {
    const int64_t width = RowCodes::width(4 * groups);
    Fenced<int32_t> codes(static_cast<size_t>(rows * width)), query(static_cast<size_t>(groups + 4));
    Fenced<int32_t> chosen(static_cast<size_t>(count));
    const int code_kind = static_cast<int>(random.below(5)), query_kind = static_cast<int>(random.below(3));
    int32_t query_sum = 0;
    int8_t* query_codes = reinterpret_cast<int8_t*>(query.data());
    for (int64_t i = 0; i < 4 * groups; ++i) {
        query_codes[i] = query_kind == 2 ? int8_t{-127} : random_code(random, query_kind);
        query_sum += query_codes[i];
    }
    constexpr float kOdd[] = {0.0f, -0.0f, 1e-45f, 3e38f, -1.0f, 1.0f, kInfinity, -kInfinity, kNan};
    const bool odd = random.below(3) == 0;
    std::vector<float> scores(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
        int8_t* code = reinterpret_cast<int8_t*>(codes.data() + row * width);
        int64_t sum = 0;
        for (int64_t i = 0; i < 4 * groups; ++i) {
            code[i] = random_code(random, code_kind);
            sum += code[i] * query_codes[i];
        }
        const float scale = odd ? random.any_of(kOdd) : std::fabs(random.unit()) * 0.01f;
        std::memcpy(code + 4 * groups, &scale, sizeof scale);
        scores[static_cast<size_t>(row)] = static_cast<float>(static_cast<int32_t>(sum)) * scale;
    }
    for (int32_t& row : chosen) row = static_cast<int32_t>(random.below(rows));

    const QueryCodes prepared{query.data(), groups, static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(query_sum))};
    const float some = scores[static_cast<size_t>(random.below(rows))];
    for (const float floor : {-kInfinity, some, std::nextafter(some, kInfinity), kInfinity}) {
        std::vector<uint64_t> expected;
        for (const int32_t row : chosen)
            if (scores[static_cast<size_t>(row)] >= floor)
                expected.push_back(packed_hit(scores[static_cast<size_t>(row)], row));
        note(expected.data(), static_cast<int64_t>(expected.size()));
        for (const InstructionSet* set : sets) {
            Fenced<uint64_t> hits(static_cast<size_t>(count));
            const int64_t found = set->scan_rows(codes.data(), chosen.data(), count, prepared, floor, hits.data());
            if (std::vector<uint64_t>(hits.data(), hits.data() + found) == expected) continue;
            fail(*set, "scan_rows: " + std::to_string(found) + " hits, expected " + std::to_string(expected.size()) +
                           "; groups " + std::to_string(groups) + ", rows " + std::to_string(count) + ", codes " +
                           std::to_string(code_kind) + ", floor " + shown(floor));
        }
    }
}

void check_take_sparse(Random& random, int64_t blocks) {
    Fenced<uint32_t> masks(static_cast<size_t>(blocks));
    for (uint32_t& mask : masks) mask = random_mask(random);
    const int32_t first_row = static_cast<int32_t>(random.below(1 << 20) * kBlockRows);
    for (const int64_t most : {0, 1, 5, 31, 32}) {
        std::vector<int32_t> expected;
        std::vector<uint32_t> left(masks.begin(), masks.end());
        for (int64_t b = 0; b < blocks; ++b) {
            uint32_t& mask = left[static_cast<size_t>(b)];
            if (count_bits(mask) > most) continue;
            for (int32_t r = 0; r < kBlockRows; ++r)
                if (mask >> r & 1) expected.push_back(first_row + static_cast<int32_t>(b * kBlockRows) + r);
            mask = 0;
        }
        note(expected.data(), static_cast<int64_t>(expected.size()));
        for (const InstructionSet* set : sets) {
            Fenced<uint32_t> given(static_cast<size_t>(blocks));
            Fenced<int32_t> rows(static_cast<size_t>(blocks * kBlockRows + 16));
            std::copy(masks.begin(), masks.end(), given.begin());
            const int64_t taken = set->take_sparse(given.data(), blocks, most, first_row, rows.data());
            if (std::vector<int32_t>(rows.data(), rows.data() + taken) == expected &&
                std::equal(given.begin(), given.end(), left.begin()))
                continue;
            fail(*set, "take_sparse: " + std::to_string(taken) + " rows, expected " + std::to_string(expected.size()) +
                           "; blocks " + std::to_string(blocks) + ", at most " + std::to_string(most));
        }
    }
}

float value_of(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                      : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return half & 0x8000 ? -value : value;
}

void check_every_half() {
    for (uint32_t word = 0; word < 0x10000u; ++word) {
        const uint16_t half = static_cast<uint16_t>(word);
        if ((half & 0x7c00) == 0x7c00) continue;  // not finite
        uint16_t row[17] = {};
        float query[32] = {};
        const int64_t at = half % 17;
        row[at] = half;
        query[at] = 1.0f;
        const float expected = value_of(half) + 0.0f;  // a sum that starts at +0 is never -0
        for (const InstructionSet* set : sets) {
            const float got = set->dot_row(row, query, 17);
            if (bits_of(got) != bits_of(expected))
                fail(*set,
                     "dot_row: half " + std::to_string(word) + " is " + shown(got) + ", expected " + shown(expected));
        }
    }
}

void check_dot_row(Random& random, int64_t dims) {
    const size_t count = static_cast<size_t>(dims), padded = (count + 15) / 16 * 16;
    Fenced<uint16_t> row(count);
    Fenced<float> query(padded);
    const int64_t row_kind = random.below(3), query_kind = random.below(4);
    for (uint16_t& half : row) {
        do half = static_cast<uint16_t>(random.word());
        while ((half & 0x7c00) == 0x7c00);
        if (row_kind == 1) half = static_cast<uint16_t>(0x3c00 | (half & 0x83ff));  // 1 to 2: sums cancel
        if (row_kind == 2) half &= 0x83ff;                                          // subnormal
    }
    constexpr float kOdd[] = {0.0f, -0.0f, 3e38f, -3e38f, 1e-45f, 1.0f};
    for (size_t i = 0; i < count; ++i) {
        query[i] = random.unit();
        if (query_kind == 1) query[i] *= 1e-38f;
        if (query_kind == 2) query[i] = random.any_of(kOdd);  // overflow: infinities and NaN
        if (query_kind == 3 && random.below(20) == 0) query[i] *= 1e6f;
    }
    const float expected = kPortable.dot_row(row.data(), query.data(), dims);
    const uint32_t bits = bits_of(expected);
    note(&bits, 1);
    for (const InstructionSet* set : sets) {
        const float got = set->dot_row(row.data(), query.data(), dims);
        if (bits_of(got) != bits)
            fail(*set, "dot_row: " + shown(got) + ", expected " + shown(expected) + "; dims " + std::to_string(dims) +
                           ", row " + std::to_string(row_kind) + ", query " + std::to_string(query_kind));
    }
}

void check_words(Random& random, int64_t count) {
    const size_t size = static_cast<size_t>(count);
    Fenced<uint32_t> a(size), b(size);
    for (uint32_t& word : a) word = random_mask(random);
    for (uint32_t& word : b) word = random_mask(random);
    std::vector<uint32_t> both(size), either(size), one(size), none(size);
    int64_t bits = 0;
    for (size_t w = 0; w < size; ++w) {
        both[w] = a[w] & b[w], either[w] = a[w] | b[w], one[w] = a[w] ^ b[w], none[w] = ~a[w];
        for (int bit = 0; bit < 32; ++bit) bits += a[w] >> bit & 1;
    }
    note(both.data(), count);
    note(&bits, 1);
    for (const InstructionSet* set : sets) {
        Fenced<uint32_t> out(size);
        const auto check = [&](const std::vector<uint32_t>& expected, const char* what) {
            if (!std::equal(expected.begin(), expected.end(), out.begin()))
                fail(*set, std::string(what) + ": " + std::to_string(count) + " words");
        };
        set->and_words(a.data(), b.data(), count, out.data());
        check(both, "and_words");
        set->or_words(a.data(), b.data(), count, out.data());
        check(either, "or_words");
        set->xor_words(a.data(), b.data(), count, out.data());
        check(one, "xor_words");
        set->not_words(a.data(), count, out.data());
        check(none, "not_words");
        std::copy(a.begin(), a.end(), out.begin());
        set->and_words(out.data(), b.data(), count, out.data());
        check(both, "and_words in place");
        if (set->count_words(a.data(), count) != bits) fail(*set, "count_words: " + std::to_string(count) + " words");
    }
}

// Requests of all kinds, searched under every set.
void check_search(Random& random, int64_t dims, int64_t code_dims, int64_t clusters, float magnitude, bool by_row) {
    const RandomIndex index(random, dims, code_dims, clusters, magnitude, by_row);
    constexpr int64_t kBatch = 16, kMost = RandomRequests::kMost;
    const RandomRequests requests(random, index, kBatch);
    for (const int64_t batch : {kBatch / 4, kBatch}) {
        for (const int64_t count : {1, 5}) {
            threads = count;
            std::vector<SearchRoom> results;
            for (const InstructionSet* set : sets) {
                force_instruction_set(set->name);
                results.emplace_back(batch, kMost);
                cpu::search(requests.last(batch), index.view(), RandomRequests::kLimits, results.back().view());
            }
            const SearchRoom& expected = results.back();
            for (size_t s = 0; s < sets.size(); ++s)
                if (!(results[s] == expected))
                    fail(*sets[s], "search: dims " + std::to_string(dims) + " of which " + std::to_string(code_dims) +
                                       " coded, clusters " + std::to_string(clusters) + ", batch " +
                                       std::to_string(batch) + ", threads " + std::to_string(count));
            note(expected.rows.data(), batch * kMost);
            note(expected.ids.data(), batch * kMost);
            note(expected.scores.data(), batch * kMost);
            note(expected.stats.data(), 4 * batch);
            note(expected.status.data(), batch);
        }
    }
}

int run() {
    sets = find_sets();
    Random random{1};
    for (int64_t groups = 1; groups <= 33; ++groups)
        for (int repeat = 0; repeat < 40; ++repeat) check_scan_blocks(random, groups, 1 + random.below(4));
    for (const int64_t groups : {64, 97, 192, 1024}) check_scan_blocks(random, groups, 2);
    for (int repeat = 0; repeat < 3; ++repeat) check_scan_blocks(random, groups_of(kMaxDims) / 2, 1);
    for (int64_t groups = 1; groups <= 35; ++groups)
        for (int repeat = 0; repeat < 30; ++repeat) {
            const int64_t rows = 1 + random.below(60), count = random.below(50);
            check_scan_rows(random, groups, rows, count);
        }
    for (const int64_t groups : {64, 97, 1024}) check_scan_rows(random, groups, 9, 20);
    for (int repeat = 0; repeat < 3; ++repeat) check_scan_rows(random, groups_of(kMaxDims) / 2, 3, 9);
    for (int64_t blocks = 0; blocks <= 40; ++blocks) check_take_sparse(random, blocks);
    check_every_half();
    for (int64_t dims = 1; dims <= 100; ++dims)
        for (int repeat = 0; repeat < 60; ++repeat) check_dot_row(random, dims);
    for (const int64_t dims : {128, 250, 768, 4099}) check_dot_row(random, dims);
    for (const int64_t count : {0, 1, 2, 7, 8, 9, 31, 64, 100, 513}) check_words(random, count);
    for (const float magnitude : {1.0f, 1e-30f, 1e34f})
        for (const auto& [dims, code_dims] : {std::pair{8, 8}, {50, 50}, {129, 129}, {64, 24}, {96, 31}})
            for (const bool by_row : {false, true})
                check_search(random, dims, code_dims, 3 + random.below(90), magnitude, by_row);
    std::printf("sets");
    for (const InstructionSet* set : sets) std::printf(" %s", set->name);
    std::printf("\ndigest %016llx\n", static_cast<unsigned long long>(digest));
    return 0;
}

}  // namespace
}  // namespace silvertriton

int main() {
    return silvertriton::run();
}
