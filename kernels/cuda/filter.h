// Filter programs on the device: validated and resolved by a block a request, then run by a thread a mask word.
#pragma once

#include "block.h"
#include "operators.h"
#include "silvertriton/find_row.h"
#include "silvertriton/program.h"

namespace silvertriton::cuda {

// What the filter kernels work on. `slots` holds, for each word of a program, what it was resolved to:
//   a key of ANY or ALL, or the head of UNKNOWN: its term, -1 where no item has the key
//   an id of ITEMS: its row, -1 where no item has it
//   RANGE: of the head, prefixes that lie below the range (low half) and that hold all below it (high half); of its
//   first operand, prefixes that hold nothing above the range and that hold all in it; of its second, the number
struct FilterRun {
    FilterCall call;
    FilterIndex index;
    int32_t* slots;            // [B, F]
    int32_t* cluster_passing;  // [B, C], or null: not wanted
    const int32_t* excluded;   // [B, EP] rows, ascending, the first excluded_count[b] of them; or null
    int32_t* excluded_count;
    int64_t excluded_width;
};

// A prefix of a number's sorted rows: number_bitmaps has those of 1 .. Q - 1, 0 is empty and Q all with a value.
__device__ inline int64_t prefix_rows(const FilterIndex& index, int64_t known, int64_t prefix) {
    return at_most(prefix * ((known + index.buckets - 1) / index.buckets), known);
}

// Finds, by one warp, the prefixes nearest to the ends of a range. `damaged` is set where the index contradicts itself.
__device__ inline void resolve_range(const FilterIndex& index, const Instruction& instruction, int32_t* slots,
                                     int32_t* damaged) {
    const int64_t number = index.feature_number[instruction.feature];
    const bool numbered = number < index.numbers;
    const int64_t known = numbered ? index.number_known[number] : 0;
    const int64_t unknown = index.feature_terms[instruction.feature];
    bool good = numbered && known >= 0 && known <= index.rows() && unknown >= 0 && unknown < index.terms &&
                index.term_bitmap[unknown] < index.bitmap_count;
    const double low = bound_of(instruction.operands[0]), high = bound_of(instruction.operands[1]);
    int32_t below = 0, not_below = 0, inside = 0, not_above = 0;
    for (int64_t base = 0; good && base < index.buckets; base += 32) {
        const int64_t prefix = base + lane_of_thread();
        const bool exists = prefix < index.buckets;
        const int64_t rows = prefix_rows(index, known, prefix);
        const auto value_at = [&](int64_t position) {
            const int64_t row = index.number_rows[number * index.rows() + position];
            if (row >= 0 && row < index.rows()) return index.number_values[number * index.rows() + row];
            *damaged = 1;
            return 0.0;
        };
        const bool has_last = exists && rows > 0, has_next = exists && rows < known;
        const double last = has_last ? value_at(rows - 1) : 0.0, next = has_next ? value_at(rows) : 0.0;
        below += __popc(__ballot_sync(kAllLanes, has_last && last < low));
        inside += __popc(__ballot_sync(kAllLanes, has_last && last <= high));
        not_below += __popc(__ballot_sync(kAllLanes, has_next && next < low));
        not_above += __popc(__ballot_sync(kAllLanes, has_next && next <= high));
    }
    if (lane_of_thread() != 0) return;
    if (!good) *damaged = 1;
    slots[0] = below | not_below << 16;
    slots[1] = inside | not_above << 16;
    slots[2] = static_cast<int32_t>(number);
}

// The term at this place, if the index is sound there.
__device__ inline int32_t sound_term(const FilterIndex& index, int64_t term, int32_t* damaged) {
    const int32_t bitmap = index.term_bitmap[term];
    const int64_t first = index.term_postings[term], last = index.term_postings[term + 1];
    const bool good =
        bitmap >= 0 ? bitmap < index.bitmap_count : 0 <= first && first <= last && last <= index.posting_count;
    if (!good) *damaged = 1;
    return good ? static_cast<int32_t>(term) : -1;
}

// Validates the program of request b and resolves it into its slots, by a whole block. `shared` [2]. Returns a status:
// kStatusIndex where the index contradicts itself.
__device__ inline int32_t plan_program(const FilterRun& run, int64_t b, int32_t* shared) {
    const FilterIndex& index = run.index;
    const int64_t width = run.call.program_width;
    const int64_t* words = run.call.program + b * width;
    int32_t* damaged = &shared[1];
    if (thread_of_block() == 0) {
        shared[0] = check_program(words, width, run.call.fingerprint, index.feature_number, index.features).status;
        *damaged = 0;
    }
    __syncthreads();
    const int32_t status = shared[0];
    const int64_t length = status == kStatusOk ? words[1] : 0;
    const int64_t* code = words + 2;
    int32_t* slots = run.slots + b * width + 2;
    Instruction instruction{};
    int64_t turn = 0;  // the thread that is next: what the instructions name is looked up by as many as there are
    for (int64_t position = 0; position < length;) {
        const int64_t head = position;
        read_instruction(code, length, position, instruction);  // check_program has validated every one
        const int64_t first = (thread_of_block() - turn % thread_count() + thread_count()) % thread_count();
        const int64_t count = instruction.count;
        const bool is_term = instruction.opcode == Opcode::kAny || instruction.opcode == Opcode::kAll ||
                             instruction.opcode == Opcode::kUnknown;
        if (is_term) {
            const int64_t unknown = index.feature_terms[instruction.feature];
            const int64_t end = index.feature_terms[instruction.feature + 1];
            if (unknown < 0 || end <= unknown || end > index.terms) {
                *damaged = 1;
            } else if (instruction.opcode == Opcode::kUnknown) {
                if (first == 0) slots[head] = sound_term(index, unknown, damaged);
            } else {
                for (int64_t i = first; i < count; i += thread_count()) {
                    const int64_t term = lower_bound(index.term_keys, unknown + 1, end, instruction.operands[i]);
                    const bool found = term < end && index.term_keys[term] == instruction.operands[i];
                    slots[head + 1 + i] = found ? sound_term(index, term, damaged) : -1;
                }
            }
        } else if (instruction.opcode == Opcode::kItems) {
            for (int64_t i = first; i < count; i += thread_count())
                slots[head + 1 + i] = find_row(index.item_ids, instruction.operands[i]);
        } else if (instruction.opcode == Opcode::kRange) {
            if (first < 32) resolve_range(index, instruction, slots + head, damaged);
        } else {
            continue;
        }
        turn += (at_least(count, 1) + 31) / 32 * 32;
    }
    __syncthreads();
    const bool good = *damaged == 0;
    __syncthreads();
    return good ? status : kStatusIndex;
}

void launch_filter(Stream stream, const FilterRun& run);

// Takes the excluded rows out of a word.
__device__ inline uint32_t without_excluded(const FilterRun& run, int64_t b, int64_t word, uint32_t rows) {
    if (run.excluded == nullptr || rows == 0) return rows;
    const int32_t* excluded = run.excluded + b * run.excluded_width;
    const int64_t count = run.excluded_count[b];
    for (int64_t i = lower_bound(excluded, 0, count, word * kBlockRows); i < count; ++i) {
        if (excluded[i] >= (word + 1) * kBlockRows) break;
        rows &= ~(1u << (excluded[i] % kBlockRows));
    }
    return rows;
}

}  // namespace silvertriton::cuda
