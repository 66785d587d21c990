// filter_rows: runs each request's program over the mask words of the whole catalogue.
//
// A program is first compiled to steps on term masks: keys become bitmaps or posting lists, ranges become masks. The
// steps then run chunk by chunk, so that the sets on the stack stay in the first-level cache and the bitmaps stream
// through once; a set that is just one bitmap is used where it lies.

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/program.h"

namespace silvertriton::cpu {
namespace {

// 2 KiB a set: all 16 fill 32 KiB, the common three or four leave room for the bitmaps that stream by.
constexpr int64_t kChunkWords = 512;

// Ranges get a mask of the whole catalogue before the chunks start. A program with more of them would let a request
// ask for any amount of memory, so it runs with one chunk, the catalogue, and its ranges are made on the stack.
constexpr int64_t kPreparedRanges = 16;

struct InconsistentIndex : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const std::string& argument, const std::string& got, const std::string& expected) {
    throw InconsistentIndex("silvertriton::filter_rows: " + argument + ": got " + got + ", expected " + expected +
                            "; the filter index contradicts itself, build the artifact again");
}

// One term: a bitmap, or rows in ascending order.
struct Term {
    const uint32_t* bitmap;
    const int32_t* first;
    const int32_t* last;
};

// The rows at positions [first, last) of a number's sorted rows.
struct Range {
    int64_t number, first, last;
};

struct Step {
    Opcode opcode;
    int64_t first, count;  // ANY, ALL: terms [first, first + count); RANGE: ranges[first]
};

struct Plan {
    ProgramShape shape;
    std::vector<Step> steps;
    std::vector<Term> terms;
    std::vector<Range> ranges;
    std::unique_ptr<uint32_t[]> range_masks;  // [ranges, NB] when there are at most kPreparedRanges
    std::string error;

    bool whole() const { return shape.ranges > kPreparedRanges; }
};

Term term_at(const FilterIndex& index, int64_t term) {
    const int64_t bitmap = index.term_bitmap[term];
    if (bitmap >= index.bitmap_count)
        fail("term_bitmap", std::to_string(bitmap), "below " + std::to_string(index.bitmap_count));
    if (bitmap >= 0) return {index.bitmaps + bitmap * index.blocks, nullptr, nullptr};
    const int64_t first = index.term_postings[term], last = index.term_postings[term + 1];
    if (first < 0 || last < first || last > index.posting_count)
        fail("term_postings", std::to_string(first) + " .. " + std::to_string(last),
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
            fail("number_rows", std::to_string(row), "a row below " + std::to_string(index.rows()));
        if (past ? values[row] <= bound : values[row] < bound) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

void set_rows(const FilterIndex& index, const int32_t* first, const int32_t* last, bool value, uint32_t* mask) {
    const uint32_t rows = static_cast<uint32_t>(index.rows());
    for (; first < last; ++first) {
        const uint32_t row = static_cast<uint32_t>(*first);
        if (row >= rows) fail("number_rows", std::to_string(*first), "a row below " + std::to_string(rows));
        const uint32_t bit = 1u << (row % 32);
        mask[row / 32] = value ? mask[row / 32] | bit : mask[row / 32] & ~bit;
    }
}

// Writes the mask of a range over the whole catalogue: the difference of the cumulative bitmaps nearest to its ends,
// then the rows between those and the exact ends. At most a bucket's rows are touched one by one.
void range_mask(const FilterIndex& index, const Range& range, uint32_t* mask) {
    const int32_t* rows = index.number_rows + range.number * index.rows();
    const int64_t known = index.number_known[range.number];
    const int64_t step = (known + index.buckets - 1) / index.buckets;
    const int64_t boundaries = index.buckets - 1;
    // Boundary j covers the first min(j * step, known) rows; 0 is the empty set, j >= 1 is number_bitmaps[j - 1].
    const auto nearest = [&](int64_t position) {
        return step == 0 ? 0 : std::min((position + step / 2) / step, boundaries);
    };
    const auto covered = [&](int64_t boundary) { return std::min(boundary * step, known); };
    const int64_t low = nearest(range.first), high = nearest(range.last);
    const int64_t low_rows = covered(low), high_rows = covered(high);
    const int64_t to_fix = std::abs(range.first - low_rows) + std::abs(range.last - high_rows);
    if (low >= high || range.last - range.first <= to_fix) {
        std::fill_n(mask, index.blocks, 0u);
        if (range.first < range.last) set_rows(index, rows + range.first, rows + range.last, true, mask);
        return;
    }
    const uint32_t* bitmaps = index.number_bitmaps + range.number * boundaries * index.blocks;
    const uint32_t* upper = bitmaps + (high - 1) * index.blocks;
    if (low == 0) {
        std::copy_n(upper, index.blocks, mask);
    } else {
        const uint32_t* lower = bitmaps + (low - 1) * index.blocks;
        for (int64_t w = 0; w < index.blocks; ++w) mask[w] = upper[w] & ~lower[w];
    }
    set_rows(index, rows + range.first, rows + low_rows, true, mask);
    set_rows(index, rows + low_rows, rows + range.first, false, mask);
    set_rows(index, rows + high_rows, rows + range.last, true, mask);
    set_rows(index, rows + range.last, rows + high_rows, false, mask);
}

void compile(const int64_t* code, const FilterIndex& index, Plan& plan) {
    plan.steps.reserve(static_cast<size_t>(plan.shape.instructions));
    plan.terms.reserve(static_cast<size_t>(plan.shape.operands));
    plan.ranges.reserve(static_cast<size_t>(plan.shape.ranges));
    const int64_t length = code[-1];
    Instruction instruction{};
    for (int64_t position = 0; position < length;) {
        read_instruction(code, length, position, instruction);  // check_program has validated every one
        Step step{instruction.opcode, static_cast<int64_t>(plan.terms.size()), 0};
        const int64_t first_term = index.feature_terms[instruction.feature];  // checked: it is "no value"
        const int64_t* keys = index.term_keys + first_term + 1;
        const int64_t* keys_end = index.term_keys + index.feature_terms[instruction.feature + 1];
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
            case Opcode::kRange: {
                const int64_t number = index.feature_number[instruction.feature];
                step.first = static_cast<int64_t>(plan.ranges.size());
                plan.ranges.push_back({number, position_of(index, number, bound_of(instruction.operands[0]), false),
                                       position_of(index, number, bound_of(instruction.operands[1]), true)});
                break;
            }
            default:
                break;
        }
        if (step.opcode != Opcode::kRange) step.count = static_cast<int64_t>(plan.terms.size()) - step.first;
        plan.steps.push_back(step);
    }
}

Plan prepare(const int64_t* program, int64_t program_width, int64_t fingerprint, const FilterIndex& index) {
    Plan plan;
    plan.shape = check_program(program, program_width, fingerprint, index.feature_number, index.features);
    if (plan.shape.instructions == 0) return plan;
    try {
        compile(program + 2, index, plan);
        if (!plan.whole() && !plan.ranges.empty()) {
            plan.range_masks.reset(new uint32_t[plan.ranges.size() * static_cast<size_t>(index.blocks)]);
            for (size_t r = 0; r < plan.ranges.size(); ++r)
                range_mask(index, plan.ranges[r], plan.range_masks.get() + r * static_cast<size_t>(index.blocks));
        }
    } catch (const InconsistentIndex& error) {
        plan.error = error.what();
    }
    return plan;
}

// Runs a plan over a span of mask words.
class Evaluator {
  public:
    Evaluator(const Plan& plan, const FilterIndex& index, int64_t begin, int64_t end)
        : plan_(plan),
          index_(index),
          chunk_(std::min(end - begin, plan.whole() ? index.blocks : kChunkWords)),
          // One set more than the stack is deep: ALL gathers a posting list there.
          buffers_(new uint32_t[static_cast<size_t>((plan.shape.depth + 1) * chunk_)]),
          views_(static_cast<size_t>(plan.shape.depth) + 1),
          cursors_(plan.terms.size()) {
        const int64_t first_row = begin * kBlockRows;
        for (size_t t = 0; t < plan.terms.size(); ++t)
            cursors_[t] = std::lower_bound(plan.terms[t].first, plan.terms[t].last, first_row);
    }

    // Writes out[begin .. end); [begin, end) advances from chunk to chunk.
    void run(int64_t begin, int64_t end, uint32_t* out) {
        for (int64_t start = begin; start < end; start += chunk_) {
            start_ = start;
            words_ = std::min(chunk_, end - start);
            const uint32_t* result = chunk();
            const uint32_t* valid = index_.valid + start;
            for (int64_t w = 0; w < words_; ++w) out[start + w] = result[w] & valid[w];
        }
    }

  private:
    uint32_t* buffer(int set) { return buffers_.get() + set * chunk_; }

    const uint32_t* chunk() {
        int sets = 0;
        for (const Step& step : plan_.steps) {
            switch (step.opcode) {
                case Opcode::kAnd:
                case Opcode::kOr: {
                    sets -= 1;
                    const uint32_t *left = views_[sets - 1], *right = views_[sets];
                    uint32_t* result = buffer(sets - 1);
                    if (step.opcode == Opcode::kAnd) {
                        for (int64_t w = 0; w < words_; ++w) result[w] = left[w] & right[w];
                    } else {
                        for (int64_t w = 0; w < words_; ++w) result[w] = left[w] | right[w];
                    }
                    views_[sets - 1] = result;
                    break;
                }
                case Opcode::kNot: {
                    const uint32_t* operand = views_[sets - 1];
                    uint32_t* result = buffer(sets - 1);
                    for (int64_t w = 0; w < words_; ++w) result[w] = ~operand[w];
                    views_[sets - 1] = result;
                    break;
                }
                case Opcode::kAny:
                    views_[sets] = any_of(step, buffer(sets));
                    sets += 1;
                    break;
                case Opcode::kAll:
                    views_[sets] = all_of(step, buffer(sets), buffer(sets + 1));
                    sets += 1;
                    break;
                default:  // kRange
                    views_[sets] = range(plan_.ranges[step.first], step.first, buffer(sets));
                    sets += 1;
                    break;
            }
        }
        return views_[0];
    }

    const uint32_t* any_of(const Step& step, uint32_t* result) {
        if (step.count == 1 && plan_.terms[step.first].bitmap != nullptr)
            return plan_.terms[step.first].bitmap + start_;
        std::fill_n(result, words_, 0u);
        for (int64_t t = step.first; t < step.first + step.count; ++t) {
            if (const uint32_t* bitmap = plan_.terms[t].bitmap) {
                bitmap += start_;
                for (int64_t w = 0; w < words_; ++w) result[w] |= bitmap[w];
            } else {
                add_postings(t, result);
            }
        }
        return result;
    }

    const uint32_t* all_of(const Step& step, uint32_t* result, uint32_t* spare) {
        if (step.count == 1) return any_of(step, result);
        std::fill_n(result, words_, ~0u);
        for (int64_t t = step.first; t < step.first + step.count; ++t) {
            const uint32_t* mask = spare;
            if (plan_.terms[t].bitmap != nullptr) {
                mask = plan_.terms[t].bitmap + start_;
            } else {
                std::fill_n(spare, words_, 0u);
                add_postings(t, spare);
            }
            for (int64_t w = 0; w < words_; ++w) result[w] &= mask[w];
        }
        return result;
    }

    // Sets the rows of this chunk. Rows that are out of order, as in a damaged index, are lost, never written outside.
    void add_postings(int64_t term, uint32_t* mask) {
        const int64_t first_row = start_ * kBlockRows, end_row = (start_ + words_) * kBlockRows;
        const int32_t* cursor = cursors_[term];
        for (; cursor < plan_.terms[term].last && *cursor < end_row; ++cursor) {
            const int64_t row = *cursor - first_row;
            if (row >= 0) mask[row / 32] |= 1u << (row % 32);
        }
        cursors_[term] = cursor;
    }

    const uint32_t* range(const Range& range, int64_t position, uint32_t* result) {
        if (!plan_.whole()) return plan_.range_masks.get() + position * index_.blocks + start_;
        range_mask(index_, range, result);
        return result;
    }

    const Plan& plan_;
    const FilterIndex& index_;
    const int64_t chunk_;
    std::unique_ptr<uint32_t[]> buffers_;
    std::vector<const uint32_t*> views_;
    std::vector<const int32_t*> cursors_;
    int64_t start_ = 0, words_ = 0;
};

void run_span(Plan& plan, const FilterIndex& index, int64_t begin, int64_t end, uint32_t* out) {
    if (plan.shape.status != kStatusOk || !plan.error.empty()) {
        std::fill(out + begin, out + end, 0u);
    } else if (plan.shape.instructions == 0) {
        std::copy(index.valid + begin, index.valid + end, out + begin);
    } else if (begin < end) {
        try {
            Evaluator(plan, index, begin, end).run(begin, end, out);
        } catch (const InconsistentIndex& error) {
            plan.error = error.what();  // only a plan of one span makes ranges here: no other thread writes this
        }
    }
}

}  // namespace

void filter_rows(FilterRequest* requests, int64_t batch, int64_t program_width, int64_t fingerprint,
                 const FilterIndex& index) {
    const InstructionSet& isa = instruction_set();
    std::vector<Plan> plans(static_cast<size_t>(batch));
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            plans[b] = prepare(requests[b].program, program_width, fingerprint, index);
    });

    // Spans of whole chunks, so that a lone request too is spread over the threads.
    const int64_t chunks = std::max<int64_t>((index.blocks + kChunkWords - 1) / kChunkWords, 1);
    const int64_t spans = std::clamp<int64_t>((thread_count() + batch - 1) / std::max<int64_t>(batch, 1), 1, chunks);
    const int64_t span_words = (chunks + spans - 1) / spans * kChunkWords;
    parallel_for(batch * spans, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            Plan& plan = plans[task / spans];
            const int64_t span = task % spans;
            if (plan.whole() && span > 0) continue;
            const int64_t last = plan.whole() ? index.blocks : std::min((span + 1) * span_words, index.blocks);
            const int64_t first = std::min(span * span_words, last);
            run_span(plan, index, first, last, requests[task / spans].words);
        }
    });
    for (const Plan& plan : plans)
        if (!plan.error.empty()) throw std::runtime_error(plan.error);

    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            isa.count_clusters(requests[b].words, index.cluster_blocks, index.clusters, requests[b].passing);
            requests[b].status = plans[b].shape.status;
        }
    });
}

}  // namespace silvertriton::cpu
