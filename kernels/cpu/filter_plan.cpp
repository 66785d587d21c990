#include "filter_plan.h"

#include <algorithm>

#include "find_items.h"

namespace silvertriton::cpu {
namespace {

Term term_at(const FilterIndex& index, int64_t term) {
    const int64_t bitmap = index.term_bitmap[term];
    if (bitmap >= index.bitmap_count)
        fail_inconsistent("term_bitmap", std::to_string(bitmap), "below " + std::to_string(index.bitmap_count));
    if (bitmap >= 0) return {index.bitmaps + bitmap * index.blocks, nullptr, nullptr};
    const int64_t first = index.term_postings[term], last = index.term_postings[term + 1];
    if (first < 0 || last < first || last > index.posting_count)
        fail_inconsistent("term_postings", std::to_string(first) + " .. " + std::to_string(last),
                          "an ascending span within " + std::to_string(index.posting_count) + " postings");
    return {nullptr, index.postings + first, index.postings + last};
}

// The first position among the known rows whose value is not below `bound` (or, with `past`, is above it).
int64_t position_of(const FilterIndex& index, int64_t number, double bound, bool past) {
    const int32_t* rows = index.number_rows + number * index.rows();
    const double* values = index.number_values + number * index.rows();
    int64_t first = 0, last = index.number_known[number];
    while (first < last) {
        const int64_t middle = first + (last - first) / 2;
        const int64_t row = rows[middle];
        if (row < 0 || row >= index.rows())
            fail_inconsistent("number_rows", std::to_string(row), "a row below " + std::to_string(index.rows()));
        if (past ? values[row] <= bound : values[row] < bound) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

// The rows of the operands as a term of its own; they are written from `rows` on. Ids that no item has are left out.
Term term_of_items(const Instruction& instruction, const ItemIds& items, int32_t* rows) {
    std::vector<int64_t> places(static_cast<size_t>(instruction.count));
    find_items(items, instruction.operands, instruction.count, places.data());
    int32_t* end = rows;
    for (const int64_t place : places)
        if (place >= 0) *end++ = items.item_rows[place];
    std::sort(rows, end);
    return {nullptr, rows, std::unique(rows, end)};
}

bool is_condition(Opcode opcode) {
    return opcode != Opcode::kAnd && opcode != Opcode::kOr && opcode != Opcode::kNot;
}

// For each set on the stack the ranges that an AND joins to it, so that every row of the set is in them.
using JoinedRanges = std::vector<std::vector<size_t>>;

// Pops a set of ranges for an AND. Where its right side is a range of a number that the left side is in a range of
// already, the two become one (a price of at least this and at most that): returns true, and the AND is done.
bool join_ranges(Plan& plan, JoinedRanges& joined) {
    const std::vector<size_t> right = std::move(joined.back());
    joined.pop_back();
    std::vector<size_t>& left = joined.back();
    if (plan.steps.back().opcode == Opcode::kRange) {
        const Range added = plan.ranges.back();
        for (const size_t r : left) {
            Range& range = plan.ranges[r];
            if (range.number != added.number) continue;
            range.low = std::max(range.low, added.low);
            range.high = std::min(range.high, added.high);
            range.first = std::max(range.first, added.first);
            range.last = std::max(range.first, std::min(range.last, added.last));
            plan.ranges.pop_back();
            plan.steps.pop_back();
            return true;
        }
    }
    left.insert(left.end(), right.begin(), right.end());
    return false;
}

void compile(const int64_t* code, const FilterIndex& index, Plan& plan) {
    plan.steps.reserve(static_cast<size_t>(plan.shape.instructions));
    plan.terms.reserve(static_cast<size_t>(plan.shape.operands));
    plan.ranges.reserve(static_cast<size_t>(plan.shape.ranges));
    if (plan.shape.items > 0) plan.item_rows.reset(new int32_t[static_cast<size_t>(plan.shape.items)]);
    int32_t* item_rows = plan.item_rows.get();
    const int64_t length = code[-1];
    JoinedRanges joined;
    Instruction instruction{};
    for (int64_t position = 0; position < length;) {
        read_instruction(code, length, position, instruction);  // check_program has validated every one
        Step step{instruction.opcode, static_cast<int64_t>(plan.terms.size()), 0};
        // Instructions that name no feature run on an index of none too.
        const bool named = instruction.feature < index.features;
        const int64_t first_term = named ? index.feature_terms[instruction.feature] : 0;  // checked: it is "no value"
        const int64_t* keys = index.term_keys + (named ? first_term + 1 : 0);
        const int64_t* keys_end = index.term_keys + (named ? index.feature_terms[instruction.feature + 1] : 0);
        switch (instruction.opcode) {
            case Opcode::kAny:
            case Opcode::kAll:
                for (int64_t i = 0; i < instruction.count; ++i) {
                    const int64_t* key = std::lower_bound(keys, keys_end, instruction.operands[i]);
                    if (key != keys_end && *key == instruction.operands[i]) {
                        plan.terms.push_back(term_at(index, key - index.term_keys));
                    } else if (instruction.opcode == Opcode::kAll) {
                        plan.terms.resize(static_cast<size_t>(step.first));  // a key no item has: no row has them all
                        step.opcode = Opcode::kAny;
                        break;
                    }
                }
                break;
            case Opcode::kUnknown:
                step.opcode = Opcode::kAny;
                plan.terms.push_back(term_at(index, first_term));
                break;
            case Opcode::kItems:
                step.opcode = Opcode::kAny;
                plan.terms.push_back(term_of_items(instruction, index.item_ids, item_rows));
                item_rows += instruction.count;
                break;
            case Opcode::kRange: {
                const int64_t number = index.feature_number[instruction.feature];
                step.first = static_cast<int64_t>(plan.ranges.size());
                const double low = bound_of(instruction.operands[0]), high = bound_of(instruction.operands[1]);
                plan.ranges.push_back({number, position_of(index, number, low, false),
                                       position_of(index, number, high, true), low, high, term_at(index, first_term)});
                break;
            }
            case Opcode::kAnd:
                if (join_ranges(plan, joined)) continue;
                break;
            case Opcode::kOr:
                joined.pop_back();
                joined.back().clear();
                break;
            case Opcode::kNot:
                joined.back().clear();
                break;
        }
        if (is_condition(step.opcode)) joined.emplace_back();
        if (step.opcode == Opcode::kRange) joined.back().push_back(plan.ranges.size() - 1);
        if (step.opcode != Opcode::kRange) step.count = static_cast<int64_t>(plan.terms.size()) - step.first;
        plan.steps.push_back(step);
    }
}

}  // namespace

void fail_inconsistent(const std::string& argument, const std::string& got, const std::string& expected) {
    throw InconsistentIndex(argument + ": got " + got + ", expected " + expected +
                            "; the filter index contradicts itself, build the artifact again");
}

Plan plan_filter(const int64_t* program, int64_t program_width, int64_t fingerprint, const FilterIndex& index) {
    Plan plan;
    plan.shape = check_program(program, program_width, fingerprint, index.feature_number, index.features);
    if (plan.shape.instructions > 0) compile(program + 2, index, plan);
    return plan;
}

}  // namespace silvertriton::cpu
