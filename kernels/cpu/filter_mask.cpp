#include "filter_mask.h"

#include <algorithm>
#include <cstdlib>

namespace silvertriton::cpu {
namespace {

void set_rows(const FilterIndex& index, const int32_t* first, const int32_t* last, bool value, uint32_t* mask) {
    const uint32_t rows = static_cast<uint32_t>(index.rows());
    for (; first < last; ++first) {
        const uint32_t row = static_cast<uint32_t>(*first);
        if (row >= rows)
            fail_inconsistent("number_rows", std::to_string(*first), "a row below " + std::to_string(rows));
        const uint32_t bit = 1u << (row % 32);
        mask[row / 32] = value ? mask[row / 32] | bit : mask[row / 32] & ~bit;
    }
}

// Writes the mask of a range over the whole catalogue: the difference of the cumulative bitmaps nearest to its ends,
// then the rows between those and the exact ends. At most a bucket's rows are touched one by one.
void write_range(const FilterIndex& index, const Range& range, uint32_t* mask) {
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

// Runs a plan over a span of mask words.
class Evaluator {
  public:
    Evaluator(const MaskPlan& masks, const FilterIndex& index, const InstructionSet& isa, int64_t begin, int64_t end)
        : masks_(masks),
          plan_(masks.plan()),
          index_(index),
          isa_(isa),
          chunk_(std::min(end - begin, masks.whole() ? index.blocks : kChunkWords)),
          // One set more than the stack is deep: ALL gathers a posting list there.
          buffers_(new uint32_t[static_cast<size_t>((plan_.shape.depth + 1) * chunk_)]),
          views_(static_cast<size_t>(plan_.shape.depth) + 1),
          cursors_(plan_.terms.size()) {
        const int64_t first_row = begin * kBlockRows;
        for (size_t t = 0; t < plan_.terms.size(); ++t)
            cursors_[t] = std::lower_bound(plan_.terms[t].first, plan_.terms[t].last, first_row);
    }

    // Writes out[begin .. end) and returns the bits set in it.
    int64_t run(int64_t begin, int64_t end, uint32_t* out) {
        int64_t passing = 0;
        for (int64_t start = begin; start < end; start += chunk_) {
            start_ = start;
            words_ = std::min(chunk_, end - start);
            isa_.and_words(chunk(), index_.valid + start, words_, out + start);
            passing += isa_.count_words(out + start, words_);
        }
        return passing;
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
                    uint32_t* result = buffer(sets - 1);
                    const auto combine = step.opcode == Opcode::kAnd ? isa_.and_words : isa_.or_words;
                    combine(views_[sets - 1], views_[sets], words_, result);
                    views_[sets - 1] = result;
                    break;
                }
                case Opcode::kNot: {
                    uint32_t* result = buffer(sets - 1);
                    isa_.not_words(views_[sets - 1], words_, result);
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
                isa_.or_words(result, bitmap + start_, words_, result);
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
            isa_.and_words(result, mask, words_, result);
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
        if (!masks_.whole()) return masks_.range_mask(position) + start_;
        write_range(index_, range, result);
        return result;
    }

    const MaskPlan& masks_;
    const Plan& plan_;
    const FilterIndex& index_;
    const InstructionSet& isa_;
    const int64_t chunk_;
    std::unique_ptr<uint32_t[]> buffers_;
    std::vector<const uint32_t*> views_;
    std::vector<const int32_t*> cursors_;
    int64_t start_ = 0, words_ = 0;
};

}  // namespace

MaskPlan::MaskPlan(const Plan& plan, const FilterIndex& index) : plan_(plan), blocks_(index.blocks) {
    if (whole() || plan.ranges.empty()) return;
    range_masks_.reset(new uint32_t[plan.ranges.size() * static_cast<size_t>(blocks_)]);
    for (size_t r = 0; r < plan.ranges.size(); ++r)
        write_range(index, plan.ranges[r], range_masks_.get() + static_cast<int64_t>(r) * blocks_);
}

int64_t write_mask(const MaskPlan& plan, const FilterIndex& index, const InstructionSet& isa, int64_t begin,
                   int64_t end, uint32_t* words) {
    if (begin >= end) return 0;
    if (plan.plan().steps.empty()) {  // no filter
        std::copy(index.valid + begin, index.valid + end, words + begin);
        return isa.count_words(words + begin, end - begin);
    }
    return Evaluator(plan, index, isa, begin, end).run(begin, end, words);
}

}  // namespace silvertriton::cpu
