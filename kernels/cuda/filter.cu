// filter_rows, and the filter of a search: the program of each request over mask words.

#include "filter.h"

namespace silvertriton::cuda {
namespace {

// Sets on the stack of all threads, a word each, and a mask in which posting lists are gathered.
struct FilterShared {
    uint32_t sets[kMaxSets][kThreads];
    uint32_t posted[kThreads];
    int32_t sums[kMostWarps];
};

// One program over the words of one block.
class Evaluator {
  public:
    __device__ Evaluator(const FilterRun& run, int64_t b, int64_t first_word, FilterShared& shared)
        : run_(run),
          index_(run.index),
          code_(run.call.program + b * run.call.program_width + 2),
          slots_(run.slots + b * run.call.program_width + 2),
          first_word_(first_word),
          word_(first_word + thread_of_block()),
          exists_(word_ < run.index.blocks),
          shared_(shared) {}

    __device__ uint32_t run() {
        const int64_t length = code_[-1];
        const int own = thread_of_block();
        int sets = 0;
        Instruction instruction{};
        for (int64_t position = 0; position < length;) {
            const int64_t head = position;
            read_instruction(code_, length, position, instruction);
            switch (instruction.opcode) {
                case Opcode::kAnd:
                    sets -= 1;
                    shared_.sets[sets - 1][own] &= shared_.sets[sets][own];
                    break;
                case Opcode::kOr:
                    sets -= 1;
                    shared_.sets[sets - 1][own] |= shared_.sets[sets][own];
                    break;
                case Opcode::kNot:
                    shared_.sets[sets - 1][own] = ~shared_.sets[sets - 1][own];
                    break;
                case Opcode::kAny:
                    shared_.sets[sets++][own] = any_of(slots_ + head + 1, instruction.count);
                    break;
                case Opcode::kAll:
                    shared_.sets[sets++][own] = all_of(slots_ + head + 1, instruction.count);
                    break;
                case Opcode::kUnknown:
                    shared_.sets[sets++][own] = any_of(slots_ + head, 1);
                    break;
                case Opcode::kItems:
                    shared_.sets[sets++][own] = items(slots_ + head + 1, instruction.count);
                    break;
                case Opcode::kRange:
                    shared_.sets[sets++][own] = range(instruction, slots_ + head);
                    break;
            }
        }
        return length == 0 ? ~0u : shared_.sets[0][own];
    }

  private:
    __device__ uint32_t any_of(const int32_t* terms, int64_t count) {
        uint32_t result = 0;
        bool gathers = false;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t term = terms[i];
            if (term < 0) continue;
            const int64_t bitmap = index_.term_bitmap[term];
            if (bitmap >= 0) {
                if (exists_) result |= index_.bitmaps[bitmap * index_.blocks + word_];
            } else {
                if (!gathers) start_gathering();
                gathers = true;
                gather(term);
            }
        }
        return gathers ? result | gathered() : result;
    }

    __device__ uint32_t all_of(const int32_t* terms, int64_t count) {
        uint32_t result = ~0u;
        for (int64_t i = 0; i < count; ++i)
            if (terms[i] < 0) return 0;  // a key no item has: no row has them all
        for (int64_t i = 0; i < count; ++i) result &= any_of(terms + i, 1);
        return result;
    }

    __device__ void start_gathering() {
        shared_.posted[thread_of_block()] = 0;
        __syncthreads();
    }

    // Sets the rows of a posting list. Rows that are out of order, as in a damaged index, are lost, never written
    // outside.
    __device__ void gather(int64_t term) {
        const int64_t last = index_.term_postings[term + 1];
        const int64_t first_row = first_word_ * kBlockRows, end_row = first_row + kThreads * kBlockRows;
        const int64_t first = warp_lower_bound(index_.postings, index_.term_postings[term], last, first_row);
        for (int64_t i = first + thread_of_block(); i < last; i += kThreads) {
            const int64_t row = index_.postings[i];
            if (row >= end_row) break;
            if (row >= first_row) atomicOr(&shared_.posted[(row - first_row) / kBlockRows], 1u << (row % kBlockRows));
        }
    }

    __device__ uint32_t items(const int32_t* rows, int64_t count) {
        start_gathering();
        const int64_t first_row = first_word_ * kBlockRows;
        for (int64_t i = thread_of_block(); i < count; i += kThreads) {
            const int64_t row = rows[i] - first_row;
            if (rows[i] >= 0 && row >= 0 && row < kThreads * kBlockRows)
                atomicOr(&shared_.posted[row / kBlockRows], 1u << (row % kBlockRows));
        }
        return gathered();
    }

    __device__ uint32_t gathered() {
        __syncthreads();
        return shared_.posted[thread_of_block()];
    }

    __device__ uint32_t prefix(int64_t number, int64_t feature, int64_t prefix) {
        if (prefix == 0) return 0;
        if (prefix < index_.buckets)
            return index_.number_bitmaps[(number * (index_.buckets - 1) + prefix - 1) * index_.blocks + word_];
        // Rows without a value have none that is in the range; where they are known, their values need not be read.
        const int64_t unknown = index_.term_bitmap[index_.feature_terms[feature]];
        return unknown >= 0 ? ~index_.bitmaps[unknown * index_.blocks + word_] : ~0u;
    }

    // Rows between the prefixes that are wholly inside are in the range; of those between these and the prefixes that
    // are wholly outside, some one in sixteen, the values are read.
    __device__ uint32_t range(const Instruction& instruction, const int32_t* slots) {
        if (!exists_) return 0;
        const int64_t number = slots[2], feature = instruction.feature;
        const auto low_half = [](int32_t pair) { return static_cast<int64_t>(static_cast<uint32_t>(pair) & 0xffffu); };
        const auto high_half = [](int32_t pair) { return static_cast<int64_t>(static_cast<uint32_t>(pair) >> 16); };
        const uint32_t candidates = ~prefix(number, feature, low_half(slots[0])) &
                                    prefix(number, feature, high_half(slots[1])) & index_.valid[word_];
        uint32_t result =
            candidates & ~prefix(number, feature, high_half(slots[0])) & prefix(number, feature, low_half(slots[1]));
        const double low = bound_of(instruction.operands[0]), high = bound_of(instruction.operands[1]);
        const double* values = index_.number_values + number * index_.rows() + word_ * kBlockRows;
        for (uint32_t bits = candidates & ~result; bits != 0; bits &= bits - 1) {
            const int row = __ffs(static_cast<int>(bits)) - 1;
            if (values[row] >= low && values[row] <= high) result |= 1u << row;
        }
        return result;
    }

    const FilterRun& run_;
    const FilterIndex& index_;
    const int64_t* code_;
    const int32_t* slots_;
    const int64_t first_word_, word_;
    const bool exists_;
    FilterShared& shared_;
};

// Adds the rows of a warp's words to the counts of their clusters.
__device__ void count_by_cluster(const FilterRun& run, int64_t b, int64_t word, uint32_t rows) {
    const FilterIndex& index = run.index;
    const int64_t first_word = word - lane_of_thread();
    if (first_word >= index.blocks || index.clusters == 0) return;
    int64_t cluster = warp_lower_bound(index.cluster_blocks, 0, index.clusters + 1, first_word + 1) - 1;
    cluster = at_most(at_least(cluster, 0), index.clusters - 1);
    while (cluster + 1 < index.clusters && index.cluster_blocks[cluster + 1] <= word) ++cluster;
    // Lanes of one cluster follow each other: the last of them adds the sum of all.
    const int32_t sum = warp_prefix_sum(__popc(rows));
    const int64_t before = __shfl_up_sync(kAllLanes, cluster, 1);
    const unsigned heads = __ballot_sync(kAllLanes, lane_of_thread() == 0 || before != cluster);
    const unsigned own_heads = heads & (0xffffffffu >> (31 - lane_of_thread()));
    const int head = 31 - __clz(static_cast<int>(own_heads));
    const int32_t sum_before = __shfl_sync(kAllLanes, sum, head == 0 ? 0 : head - 1);
    const bool is_last = lane_of_thread() == 31 || (heads >> (lane_of_thread() + 1) & 1u) != 0;
    const int32_t own = head == 0 ? sum : sum - sum_before;
    if (is_last && own > 0) atomicAdd(&run.cluster_passing[b * index.clusters + cluster], own);
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

// A block 256 words of a request. In a search, which counts by cluster, requests without a filter are left out, and
// nothing is written for those that are not well.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_filter(silvertriton::cuda::FilterRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ FilterShared shared;
    const int64_t first_word = static_cast<int64_t>(blockIdx.x) * kThreads, word = first_word + thread_of_block();
    const bool searches = run.cluster_passing != nullptr;
    for (int64_t b = blockIdx.y; b < run.call.batch; b += gridDim.y) {
        const bool good = run.call.status[b] == kStatusOk;
        if (searches && (!good || run.call.program[b * run.call.program_width + 1] == 0)) continue;
        uint32_t rows = good ? Evaluator(run, b, first_word, shared).run() : 0;
        rows = word < run.index.blocks ? rows & run.index.valid[word] : 0;
        rows = without_excluded(run, b, word, rows);
        if (word < run.index.blocks) run.call.words[b * run.index.blocks + word] = rows;
        if (searches) count_by_cluster(run, b, word, rows);
        const int32_t passing = block_sum(__popc(rows), shared.sums);
        if (thread_of_block() == 0 && passing > 0) atomicAdd(&run.call.passing[b], passing);
    }
}

namespace silvertriton::cuda {

void launch_filter(Stream stream, const FilterRun& run) {
    constexpr int64_t kMostRequests = 65535;  // in one dimension of a grid
    const auto chunks = static_cast<unsigned>((run.index.blocks + kThreads - 1) / kThreads);
    const auto requests = static_cast<unsigned>(run.call.batch < kMostRequests ? run.call.batch : kMostRequests);
    launch("filter", silvertriton_filter, dim3(chunks, requests), kThreads, stream, run);
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
