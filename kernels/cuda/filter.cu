// filter_rows, and the filter of a search: the program of each request over mask words.

#include "filter.h"

namespace silvertriton::cuda {
namespace {

// Words of a request over which a block runs its program: some a thread, kFilterThreads apart, so that loads are
// contiguous and an instruction is read once for all of them.
#if !defined(ST_FILTER_THREADS)  // of a plugin, whose blocks do more than this, there are others
#define ST_FILTER_THREADS 64
#endif
constexpr int kTileWords = 512, kFilterThreads = ST_FILTER_THREADS, kWordsOfThread = kTileWords / kFilterThreads;
using Words = uint32_t[kWordsOfThread];

// Sets on the stack, and one in which posting lists are gathered.
struct FilterShared {
    uint32_t sets[kMaxSets][kTileWords];
    uint32_t posted[kTileWords];
    int32_t sums[kMostWarps];
};

// The k-th word of a thread in a tile.
__device__ inline int own_word(int k) {
    return thread_of_block() + k * kFilterThreads;
}

// One program over the words of a tile.
class Evaluator {
  public:
    __device__ Evaluator(const FilterRun& run, int64_t b, int64_t first_word, FilterShared& shared)
        : index_(run.index),
          code_(run.call.program + b * run.call.program_width + 2),
          slots_(run.slots + b * run.call.program_width + 2),
          first_word_(first_word),
          shared_(shared) {}

    __device__ void run(Words& rows) {
        const int64_t length = code_[-1];
        int sets = 0;
        Instruction instruction{};
        ST_ROLLED
        for (int64_t position = 0; position < length;) {
            const int64_t head = position;
            read_instruction(code_, length, position, instruction);
            switch (instruction.opcode) {
                case Opcode::kAnd:
                    sets -= 1;
                    for (int k = 0; k < kWordsOfThread; ++k) set(sets - 1, k) &= set(sets, k);
                    continue;
                case Opcode::kOr:
                    sets -= 1;
                    for (int k = 0; k < kWordsOfThread; ++k) set(sets - 1, k) |= set(sets, k);
                    continue;
                case Opcode::kNot:
                    for (int k = 0; k < kWordsOfThread; ++k) set(sets - 1, k) = ~set(sets - 1, k);
                    continue;
                default:
                    break;
            }
            Words needed, found;
            find_needed(position, length, sets, needed);
            const int32_t* slots = slots_ + head;
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
            for (int k = 0; k < kWordsOfThread; ++k) set(sets, k) = found[k];
            sets += 1;
        }
        for (int k = 0; k < kWordsOfThread; ++k) rows[k] = length == 0 ? ~0u : set(0, k);
    }

  private:
    __device__ uint32_t& set(int at, int k) { return shared_.sets[at][own_word(k)]; }

    // Rows of which it matters whether the set made next has them: those of the set below, where the two (or the
    // complement of the new one) are met at once; else all.
    __device__ void find_needed(int64_t position, int64_t length, int sets, Words& needed) {
        const auto is = [&](Opcode opcode) {
            return position < length && static_cast<Opcode>(code_[position] & 0xff) == opcode;
        };
        while (is(Opcode::kNot)) ++position;
        const bool met = sets > 0 && is(Opcode::kAnd);
        for (int k = 0; k < kWordsOfThread; ++k) {
            needed[k] = first_word_ + own_word(k) < index_.blocks ? ~0u : 0u;
            if (met) needed[k] &= set(sets - 1, k);
        }
    }

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
            for (int n = 0; n < kTogether; ++n)
                for (int k = 0; k < kWordsOfThread; ++k)
                    found[k] |= bitmaps[n] != nullptr && needed[k] != 0 ? bitmaps[n][own_word(k)] : 0;
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
        for (int64_t i = first + thread_of_block(); i < last; i += kFilterThreads) {
            const int64_t row = index_.postings[i];
            if (row >= end_row) break;
            if (row >= first_row) post(row - first_row);
        }
    }

    __device__ void items(const int32_t* rows, int64_t count, Words& found) {
        for (int k = 0; k < kWordsOfThread; ++k) found[k] = 0;
        start_gathering();
        const int64_t first_row = first_word_ * kBlockRows;
        for (int64_t i = thread_of_block(); i < count; i += kFilterThreads) {
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
    FilterShared& shared_;
};

ST_HOST_DEVICE inline int64_t tiles_of(const FilterRun& run) {
    return (run.index.blocks + kTileWords - 1) / kTileWords;
}

}  // namespace
}  // namespace silvertriton::cuda

// A block a request. Statuses are written, counts start at 0.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_plan_filter(silvertriton::cuda::FilterRun run) {
    using namespace silvertriton::cuda;
    __shared__ int32_t shared[2];
    for (int64_t b = blockIdx.x; b < run.call.batch; b += gridDim.x) {
        const int32_t status = plan_program(run, b, shared);
        if (thread_of_block() != 0) continue;
        run.call.status[b] = status;
        run.call.passing[b] = 0;
    }
}

// A block a tile of a request; tiles of the same words follow each other, so that requests find in the second-level
// cache what others read. In a search requests without a filter are left out, and nothing is written for those that are
// not well.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kFilterThreads)
    silvertriton_filter(const __grid_constant__ silvertriton::cuda::FilterRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ FilterShared shared;
    const bool searches = run.cluster_passing != nullptr;
    const int64_t tiles = tiles_of(run) * run.call.batch;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t b = tile % run.call.batch, first_word = tile / run.call.batch * kTileWords;
        const bool good = run.call.status[b] == kStatusOk;
        if (searches && (!good || run.call.program[b * run.call.program_width + 1] == 0)) continue;
        Words rows = {};
        if (good) Evaluator(run, b, first_word, shared).run(rows);
        int32_t passing = 0;
        for (int k = 0; k < kWordsOfThread; ++k) {
            const int64_t word = first_word + own_word(k);
            const bool exists = word < run.index.blocks;
            const uint32_t passed = exists ? without_excluded(run, b, word, rows[k] & run.index.valid[word]) : 0;
            if (exists) run.call.words[b * run.index.blocks + word] = passed;
            passing += __popc(passed);
        }
        passing = block_sum(passing, shared.sums);
        if (thread_of_block() == 0 && passing > 0) atomicAdd(&run.call.passing[b], passing);
    }
}

namespace silvertriton::cuda {

void launch_filter(Stream stream, const FilterRun& run) {
    constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
    const auto blocks = static_cast<unsigned>(at_most(tiles_of(run) * run.call.batch, kMostBlocks));
    launch("filter", silvertriton_filter, dim3(blocks), kFilterThreads, stream, run);
}

int64_t filter_rows_bytes(const FilterCall& call) {
    return call.batch * call.program_width * 4;
}

void filter_rows(const Work& work, const FilterCall& call, const FilterIndex& index) {
    const FilterRun run{call, index, static_cast<int32_t*>(work.scratch), nullptr, nullptr, nullptr, 0};
    const auto stream = static_cast<Stream>(work.stream);
    launch("plan_filter", silvertriton_plan_filter, dim3(static_cast<unsigned>(call.batch)), kThreads, stream, run);
    launch_filter(stream, run);
}

}  // namespace silvertriton::cuda
