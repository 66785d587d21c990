// A filter program over some mask words of a request, by a whole block.
#pragma once

#include "filter.h"

namespace silvertriton::cuda {

// Words of a request over which a block runs its program: some a thread, as many apart as there are threads, so that
// loads are contiguous and an instruction is read once for all of them.
constexpr int kTileWords = 512;

struct FilterShared {
    uint32_t posted[kTileWords];  // the set in which posting lists are gathered
    int32_t sums[kMostWarps];
};

// One program over the words of a tile.
template <int kTileThreads>
class Evaluator {
  public:
    static constexpr int kWordsOfThread = kTileWords / kTileThreads;
    using Words = uint32_t[kWordsOfThread];

    // The k-th word of a thread in the tile.
    __device__ static int own_word(int k) { return thread_of_block() + k * kTileThreads; }

    __device__ Evaluator(const FilterRun& run, int64_t b, int64_t first_word, FilterShared& shared)
        : index_(run.index),
          code_(run.call.program + b * run.call.program_width + 2),
          slots_(run.slots + b * run.call.program_width + 2),
          first_word_(first_word),
          words_(static_cast<int>(at_most(run.index.blocks - first_word, kTileWords))),
          shared_(shared) {}

    // The set on top of the stack, in the end the result, is in registers, those below in local memory. A set that is
    // met at once with the one below, which is what conditions of a conjunction are, needs no stack; nor is anything
    // read for rows that the one below does not have.
    __device__ void run(Words& top) {
        const int64_t length = code_[-1];
        Words below[kMaxSets - 1];
        int sets = 0;
        Instruction instruction{};
        for (int k = 0; k < kWordsOfThread; ++k) top[k] = ~0u;
        ST_ROLLED
        for (int64_t position = 0; position < length;) {
            const int32_t* slots = slots_ + position;
            const auto next_is = [&](Opcode opcode) {
                return position < length && static_cast<Opcode>(code_[position] & 0xff) == opcode;
            };
            read_instruction(code_, length, position, instruction);
            switch (instruction.opcode) {
                case Opcode::kAnd:
                    sets -= 1;
                    for (int k = 0; k < kWordsOfThread; ++k) top[k] &= below[sets - 1][k];
                    continue;
                case Opcode::kOr:
                    sets -= 1;
                    for (int k = 0; k < kWordsOfThread; ++k) top[k] |= below[sets - 1][k];
                    continue;
                case Opcode::kNot:
                    for (int k = 0; k < kWordsOfThread; ++k) top[k] = ~top[k];
                    continue;
                default:
                    break;
            }
            uint32_t flip = 0;
            for (; next_is(Opcode::kNot); ++position) flip = ~flip;
            const bool met = sets > 0 && next_is(Opcode::kAnd);
            Words needed, found;
            for (int k = 0; k < kWordsOfThread; ++k) needed[k] = own_word(k) >= words_ ? 0 : met ? top[k] : ~0u;
            switch (instruction.opcode) {
                case Opcode::kAny:
                    any_of(slots + 1, instruction.count, needed, found);
                    break;
                case Opcode::kAll:
                    all_of(slots + 1, instruction.count, needed, found);
                    break;
                case Opcode::kUnknown:
                    any_of(slots, 1, needed, found);
                    break;
                case Opcode::kItems:
                    items(slots + 1, instruction.count, found);
                    break;
                default:  // kRange
                    range(instruction, slots, needed, found);
                    break;
            }
            if (met) {
                position += 1;
                for (int k = 0; k < kWordsOfThread; ++k) top[k] &= found[k] ^ flip;
                continue;
            }
            for (int k = 0; sets > 0 && k < kWordsOfThread; ++k) below[sets - 1][k] = top[k];
            for (int k = 0; k < kWordsOfThread; ++k) top[k] = found[k] ^ flip;
            sets += 1;
        }
    }

  private:
    __device__ void any_of(const int32_t* terms, int64_t count, const Words& needed, Words& found) {
        constexpr int kTogether = 4;
        bool posted = false;
        for (int k = 0; k < kWordsOfThread; ++k) found[k] = 0;
        ST_ROLLED
        for (int64_t base = 0; base < count; base += kTogether) {
            const uint32_t* bitmaps[kTogether];
            for (int n = 0; n < kTogether; ++n) {
                const int32_t term = base + n < count ? terms[base + n] : -1;
                const int64_t bitmap = term < 0 ? -1 : index_.term_bitmap[term];
                bitmaps[n] = bitmap < 0 ? nullptr : index_.bitmaps + bitmap * index_.blocks + first_word_;
                posted = posted || (term >= 0 && bitmap < 0);
            }
            Words read[kTogether];
            for (int n = 0; n < kTogether; ++n)
                for (int k = 0; k < kWordsOfThread; ++k)
                    read[n][k] = bitmaps[n] != nullptr && needed[k] != 0 ? bitmaps[n][own_word(k)] : 0;
            for (int n = 0; n < kTogether; ++n)
                for (int k = 0; k < kWordsOfThread; ++k) found[k] |= read[n][k];
        }
        if (!posted) return;
        start_gathering();
        for (int64_t i = 0; i < count; ++i)
            if (terms[i] >= 0 && index_.term_bitmap[terms[i]] < 0) gather(terms[i]);
        add_gathered(found);
    }

    __device__ void all_of(const int32_t* terms, int64_t count, const Words& needed, Words& found) {
        bool exist = true;  // a key no item has: no row has them all
        for (int64_t i = 0; i < count; ++i) exist = exist && terms[i] >= 0;
        for (int k = 0; k < kWordsOfThread; ++k) found[k] = exist ? ~0u : 0u;
        for (int64_t i = 0; exist && i < count; ++i) {
            Words having;
            any_of(terms + i, 1, needed, having);
            for (int k = 0; k < kWordsOfThread; ++k) found[k] &= having[k];
        }
    }

    __device__ void start_gathering() {
        for (int k = 0; k < kWordsOfThread; ++k) shared_.posted[own_word(k)] = 0;
        __syncthreads();
    }

    // Sets the rows of a posting list. Rows that are out of order, as in a damaged index, are lost, never written
    // outside.
    __device__ void gather(int64_t term) {
        const int64_t last = index_.term_postings[term + 1];
        const int64_t first_row = first_word_ * kBlockRows, end_row = first_row + kTileWords * kBlockRows;
        const int64_t first = warp_lower_bound(index_.postings, index_.term_postings[term], last, first_row);
        for (int64_t i = first + thread_of_block(); i < last; i += kTileThreads) {
            const int64_t row = index_.postings[i];
            if (row >= end_row) break;
            if (row >= first_row) post(row - first_row);
        }
    }

    __device__ void items(const int32_t* rows, int64_t count, Words& found) {
        for (int k = 0; k < kWordsOfThread; ++k) found[k] = 0;
        start_gathering();
        const int64_t first_row = first_word_ * kBlockRows;
        for (int64_t i = thread_of_block(); i < count; i += kTileThreads) {
            const int64_t row = rows[i] - first_row;
            if (rows[i] >= 0 && row >= 0 && row < kTileWords * kBlockRows) post(row);
        }
        add_gathered(found);
    }

    // Rows count from the tile's first.
    __device__ void post(int64_t row) { atomicOr(&shared_.posted[row / kBlockRows], 1u << (row % kBlockRows)); }

    __device__ void add_gathered(Words& found) {
        __syncthreads();
        for (int k = 0; k < kWordsOfThread; ++k) found[k] |= shared_.posted[own_word(k)];
    }

    // A prefix of a number's sorted rows: the bits of `words`, where that is not null, or with `flip` all others.
    struct Prefix {
        const uint32_t* words;
        uint32_t flip;
        __device__ uint32_t at(int word, bool read) const {
            return (read && words != nullptr ? words[word] : 0) ^ flip;
        }
    };

    __device__ Prefix prefix(int64_t number, int64_t feature, int64_t prefix) {
        if (prefix == 0) return {nullptr, 0};
        if (prefix < index_.buckets) {
            const int64_t bitmap = number * (index_.buckets - 1) + prefix - 1;
            return {index_.number_bitmaps + bitmap * index_.blocks + first_word_, 0};
        }
        // Rows without a value have none that is in the range; where they are known, their values need not be read.
        const int64_t unknown = index_.term_bitmap[index_.feature_terms[feature]];
        return {unknown < 0 ? nullptr : index_.bitmaps + unknown * index_.blocks + first_word_, ~0u};
    }

    // Rows between the prefixes that are wholly inside are in the range; of those between these and the prefixes that
    // are wholly outside, some one in sixteen, the values are read, where they are needed.
    __device__ void range(const Instruction& instruction, const int32_t* slots, const Words& needed, Words& found) {
        const int64_t number = slots[2], feature = instruction.feature;
        const auto low_half = [](int32_t pair) { return static_cast<int64_t>(static_cast<uint32_t>(pair) & 0xffffu); };
        const auto high_half = [](int32_t pair) { return static_cast<int64_t>(static_cast<uint32_t>(pair) >> 16); };
        const Prefix below = prefix(number, feature, low_half(slots[0])),
                     not_inside = prefix(number, feature, high_half(slots[0])),
                     inside = prefix(number, feature, low_half(slots[1])),
                     not_above = prefix(number, feature, high_half(slots[1]));
        Words unsure;
        for (int k = 0; k < kWordsOfThread; ++k) {
            const int word = own_word(k);
            const bool read = needed[k] != 0;
            const uint32_t possible =
                ~below.at(word, read) & not_above.at(word, read) & (read ? index_.valid[first_word_ + word] : 0);
            found[k] = possible & ~not_inside.at(word, read) & inside.at(word, read);
            unsure[k] = possible & ~found[k] & needed[k];
        }
        const double low = bound_of(instruction.operands[0]), high = bound_of(instruction.operands[1]);
        const double* values = index_.number_values + number * index_.rows() + first_word_ * kBlockRows;
        ST_ROLLED
        for (uint32_t left = 1; left != 0;) {
            double value[kWordsOfThread];
            for (int k = 0; k < kWordsOfThread; ++k) {
                const int row = __ffs(static_cast<int>(unsure[k])) - 1;
                value[k] = row < 0 ? 0.0 : values[own_word(k) * kBlockRows + row];
            }
            left = 0;
            for (int k = 0; k < kWordsOfThread; ++k) {
                if (value[k] >= low && value[k] <= high) found[k] |= unsure[k] & (0u - unsure[k]);
                left |= unsure[k] &= unsure[k] - 1;
            }
        }
    }

    const FilterIndex& index_;
    const int64_t* code_;
    const int32_t* slots_;
    const int64_t first_word_;
    const int words_;  // of the tile that exist
    FilterShared& shared_;
};

// Runs the program of request b, or none where it is not `good`, over a tile's words and writes them; returns how many
// rows pass in those of this thread.
template <int kTileThreads>
__device__ inline int32_t filter_tile(const FilterRun& run, int64_t b, int64_t first_word, bool good,
                                      FilterShared& shared) {
    using Tile = Evaluator<kTileThreads>;
    typename Tile::Words rows = {};
    if (good) Tile(run, b, first_word, shared).run(rows);
    int32_t passing = 0;
    for (int k = 0; k < Tile::kWordsOfThread; ++k) {
        const int64_t word = first_word + Tile::own_word(k);
        const bool exists = word < run.index.blocks;
        const uint32_t passed = exists ? without_excluded(run, b, word, rows[k] & run.index.valid[word]) : 0;
        if (exists) run.call.words[b * run.index.blocks + word] = passed;
        passing += __popc(passed);
    }
    return passing;
}

}  // namespace silvertriton::cuda
