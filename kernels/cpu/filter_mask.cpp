#include "filter_mask.h"

#include <algorithm>

#include "prefetch.h"
#include "range_mask.h"

namespace silvertriton::cpu {
namespace {

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
                    views_[sets] = range(step.first, buffer(sets));
                    sets += 1;
                    break;
            }
        }
        return views_[0];
    }

    // That of a bitmap of the index. Asks memory for the chunk after it, which the processor does not see coming: a
    // chunk of each bitmap is read in turn.
    const uint32_t* chunk_of(const uint32_t* bitmap) const {
        const uint32_t* chunk = bitmap + start_;
        if (plan_.terms.size() > kMostAsked) return chunk;
        const int64_t end = std::min(words_ + chunk_, index_.blocks - start_);
        ask(chunk + words_, 4 * (end - words_));
        return chunk;
    }

    const uint32_t* any_of(const Step& step, uint32_t* result) {
        if (step.count == 1 && plan_.terms[step.first].bitmap != nullptr)
            return chunk_of(plan_.terms[step.first].bitmap);
        std::fill_n(result, words_, 0u);
        for (int64_t t = step.first; t < step.first + step.count; ++t) {
            if (const uint32_t* bitmap = plan_.terms[t].bitmap) {
                isa_.or_words(result, chunk_of(bitmap), words_, result);
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
                mask = chunk_of(plan_.terms[t].bitmap);
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
        const int32_t first_row = static_cast<int32_t>(start_ * kBlockRows);
        const uint32_t rows = static_cast<uint32_t>(words_ * kBlockRows);
        const int32_t *cursor = cursors_[term], *last = plan_.terms[term].last;
        for (; cursor < last; ++cursor) {
            const uint32_t row = static_cast<uint32_t>(*cursor) - static_cast<uint32_t>(first_row);
            if (row < rows) {
                mask[row / 32] |= 1u << (row % 32);
            } else if (*cursor >= first_row) {
                break;
            }
        }
        const int32_t* asked = cursor + std::min(last - cursor, cursor - cursors_[term]);  // about as many as now
        ask(cursor, 4 * (asked - cursor));
        cursors_[term] = cursor;
    }

    const uint32_t* range(int64_t position, uint32_t* result) {
        const RangeMask range(index_, plan_.ranges[static_cast<size_t>(position)]);
        const uint32_t* mask = result;
        if (masks_.whole()) {
            range.write_flips(result);
        } else {
            mask = masks_.flips(position) + start_;
        }
        for (const uint32_t* bitmap : range) {
            if (bitmap == nullptr) continue;
            isa_.xor_words(mask, chunk_of(bitmap), words_, result);
            mask = result;
        }
        return mask;
    }

    // Terms up to which memory is asked ahead: the longest programs name the same bitmaps again and again.
    static constexpr size_t kMostAsked = 256;

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
    flips_.reset(new uint32_t[plan.ranges.size() * static_cast<size_t>(blocks_)]);
    for (size_t r = 0; r < plan.ranges.size(); ++r)
        RangeMask(index, plan.ranges[r]).write_flips(flips_.get() + static_cast<int64_t>(r) * blocks_);
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
