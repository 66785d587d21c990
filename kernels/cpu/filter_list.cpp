#include "filter_list.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace silvertriton::cpu {
namespace {

// Rows that are tested together.
constexpr int64_t kChunkRows = 256;

int64_t size_of(const Term& term) {
    return term.last - term.first;
}

Bound nothing() {
    Bound bound;
    bound.exists = bound.ascending = true;
    return bound;
}

Bound of_term(const Term& term) {
    if (term.bitmap != nullptr) return {};
    return {true, true, size_of(term), {{term.first, term.last, false}}};
}

Bound either(Bound a, const Bound& b) {
    if (!a.exists || !b.exists) return {};
    if (a.rows == 0) return b;
    if (b.rows == 0) return a;
    a.rows += b.rows;
    a.ascending = false;
    a.spans.insert(a.spans.end(), b.spans.begin(), b.spans.end());
    return a;
}

Bound both(Bound a, Bound b) {
    if (!a.exists || !b.exists) return a.exists ? std::move(a) : std::move(b);
    return a.rows <= b.rows ? std::move(a) : std::move(b);
}

Bound of_range(const Range& range, const FilterIndex& index) {
    const int32_t* rows = index.number_rows + range.number * index.rows();
    if (range.first >= range.last) return nothing();
    return {true, false, range.last - range.first, {{rows + range.first, rows + range.last, true}}};
}

// Which of a chunk of rows satisfy a plan, one byte a row.
class Evaluator {
  public:
    // `all`: the postings that all rows are taken from, null where they come from several lists.
    Evaluator(const Plan& plan, const FilterIndex& index, const RowSpan& all)
        : plan_(plan), index_(index), all_(all), cursors_(plan.terms.size()) {
        for (size_t t = 0; t < plan.terms.size(); ++t) cursors_[t] = plan.terms[t].first;
    }

    // Rows must ascend, from call to call too.
    const uint8_t* run(const int32_t* rows, int64_t count) {
        rows_ = rows;
        count_ = count;
        int sets = 0;
        for (const Step& step : plan_.steps) {
            switch (step.opcode) {
                case Opcode::kAnd:
                    sets -= 1;
                    for (int64_t i = 0; i < count; ++i) sets_[sets - 1][i] &= sets_[sets][i];
                    break;
                case Opcode::kOr:
                    sets -= 1;
                    for (int64_t i = 0; i < count; ++i) sets_[sets - 1][i] |= sets_[sets][i];
                    break;
                case Opcode::kNot:
                    for (int64_t i = 0; i < count; ++i) sets_[sets - 1][i] ^= 1;
                    break;
                case Opcode::kAny:
                    std::fill_n(sets_[sets], count, uint8_t{0});
                    for (int64_t t = step.first; t < step.first + step.count; ++t) add_term(t, sets_[sets]);
                    sets += 1;
                    break;
                case Opcode::kAll:
                    std::fill_n(sets_[sets], count, uint8_t{1});
                    for (int64_t t = step.first; t < step.first + step.count; ++t) {
                        std::fill_n(sets_[sets + 1], count, uint8_t{0});
                        add_term(t, sets_[sets + 1]);
                        for (int64_t i = 0; i < count; ++i) sets_[sets][i] &= sets_[sets + 1][i];
                    }
                    sets += 1;
                    break;
                default: {  // kRange
                    const Range& range = plan_.ranges[static_cast<size_t>(step.first)];
                    const double* values = index_.number_values + range.number * index_.rows();
                    for (int64_t i = 0; i < count; ++i) {
                        const double value = values[rows[i]];  // NaN, no value, is in no range
                        sets_[sets][i] = static_cast<uint8_t>((value >= range.low) & (value <= range.high));
                    }
                    sets += 1;
                    break;
                }
            }
        }
        return sets_[0];
    }

  private:
    void add_term(int64_t t, uint8_t* set) {
        const Term& term = plan_.terms[static_cast<size_t>(t)];
        if (term.bitmap != nullptr) {
            for (int64_t i = 0; i < count_; ++i)
                set[i] |= static_cast<uint8_t>(term.bitmap[rows_[i] / 32] >> (rows_[i] % 32) & 1);
        } else if (all_.first != nullptr && term.first == all_.first && term.last == all_.last) {
            std::fill_n(set, count_, uint8_t{1});
        } else if (count_ > 0) {
            add_postings(term.last, cursors_[static_cast<size_t>(t)], set);
        }
    }

    void add_postings(const int32_t* last, const int32_t*& cursor, uint8_t* set) {
        skip_to(rows_[0], cursor, last);
        const int32_t* end = cursor;
        skip_to(rows_[count_ - 1] + 1, end, last);
        if (end - cursor > kMergeFactor * count_) {
            for (int64_t i = 0; i < count_; ++i) {
                skip_to(rows_[i], cursor, end);
                set[i] |= static_cast<uint8_t>(cursor != end && *cursor == rows_[i]);
            }
        } else {  // a merge whose steps have no branch to mispredict
            for (int64_t i = 0; i < count_ && cursor != end;) {
                const int32_t row = rows_[i], posting = *cursor;
                set[i] |= static_cast<uint8_t>(row == posting);
                i += row <= posting;
                cursor += row >= posting;
            }
        }
        cursor = end;
    }

    // Postings for each row from where on skipping is faster than merging.
    static constexpr int64_t kMergeFactor = 8;

    // Moves to the first posting that is not below `row`, by steps that double (Bentley and Yao, 1976).
    static void skip_to(int32_t row, const int32_t*& cursor, const int32_t* last) {
        if (cursor == last || *cursor >= row) return;
        int64_t step = 1;
        while (last - cursor > step && cursor[step] < row) {
            cursor += step;
            step *= 2;
        }
        cursor = std::lower_bound(cursor + 1, cursor + std::min<int64_t>(step, last - cursor), row);
    }

    const Plan& plan_;
    const FilterIndex& index_;
    const RowSpan all_;
    std::vector<const int32_t*> cursors_;
    const int32_t* rows_ = nullptr;
    int64_t count_ = 0;
    uint8_t sets_[kMaxSets + 1][kChunkRows];  // one more than the stack is deep: ALL gathers a term there
};

// Whether the rows that satisfy the plan are the postings of its only term.
bool is_one_list(const Plan& plan) {
    return plan.steps.size() == 1 && plan.steps[0].opcode == Opcode::kAny && plan.terms.size() == 1 &&
           plan.terms[0].bitmap == nullptr;
}

// Whether the postings are ascending rows that hold an item, as they are but in a damaged index.
bool all_hold_items(const Term& term, const FilterIndex& index) {
    const int32_t* rows = term.first;
    const int64_t count = size_of(term);
    int32_t falls = 0;  // without leaving early: compilers vectorise it
    for (int64_t i = 0; i + 1 < count; ++i) falls |= rows[i] >= rows[i + 1];
    if (count == 0 || falls != 0 || rows[0] < 0 || rows[count - 1] >= index.rows()) return false;
    uint32_t hold = 1;
    for (int64_t i = 0; i < count; ++i) hold &= index.valid[rows[i] / kBlockRows] >> (rows[i] % kBlockRows);
    return hold != 0;
}

}  // namespace

Bound bound_of(const Plan& plan, const FilterIndex& index) {
    std::vector<Bound> sets;
    for (const Step& step : plan.steps) {
        Bound bound;
        switch (step.opcode) {
            case Opcode::kAnd:
            case Opcode::kOr: {
                Bound right = std::move(sets.back());
                sets.pop_back();
                Bound left = std::move(sets.back());
                sets.pop_back();
                bound = step.opcode == Opcode::kAnd ? both(std::move(left), std::move(right))
                                                    : either(std::move(left), right);
                break;
            }
            case Opcode::kNot:
                sets.pop_back();
                break;
            case Opcode::kAny:
                bound = nothing();
                for (int64_t t = step.first; t < step.first + step.count && bound.exists; ++t)
                    bound = either(std::move(bound), of_term(plan.terms[static_cast<size_t>(t)]));
                break;
            case Opcode::kAll:
                for (int64_t t = step.first; t < step.first + step.count; ++t)
                    bound = both(std::move(bound), of_term(plan.terms[static_cast<size_t>(t)]));
                break;
            default:  // kRange
                bound = of_range(plan.ranges[static_cast<size_t>(step.first)], index);
                break;
        }
        sets.push_back(std::move(bound));
    }
    return sets.empty() ? Bound{} : std::move(sets.back());
}

// In nanoseconds, measured by scripts/bench/filters. A wrong choice costs time, never an answer.
bool list_is_cheaper(const Plan& plan, const FilterIndex& index, const Bound& bound) {
    constexpr double kRow = 2.5, kRowOperand = 1.0, kRowSorted = 2.0;  // the last for each doubling of their number
    constexpr double kWord = 0.3, kWordOperand = 0.13, kPosting = 1.0;
    if (!bound.exists) return false;
    if (is_one_list(plan)) return true;  // and a copy of it costs less than setting as many bits
    const double rows = static_cast<double>(bound.rows), words = static_cast<double>(index.blocks);
    const double operands = static_cast<double>(plan.terms.size() + plan.ranges.size());
    double postings = 0;
    for (const Term& term : plan.terms) postings += static_cast<double>(size_of(term));
    for (const Range& range : plan.ranges)
        postings += static_cast<double>(range.last - range.first) / static_cast<double>(index.buckets);
    const double sorting = bound.ascending ? 0.0 : kRowSorted * std::log2(rows + 1.0);
    return rows * (kRow + kRowOperand * operands + sorting) <=
           words * (kWord + kWordOperand * operands) + kPosting * postings;
}

void list_rows(const Plan& plan, const FilterIndex& index, const Bound& bound, std::vector<int32_t>& rows) {
    if (is_one_list(plan) && all_hold_items(plan.terms[0], index)) {
        rows.assign(plan.terms[0].first, plan.terms[0].last);
        return;
    }
    rows.resize(static_cast<size_t>(bound.rows));
    const uint32_t end = static_cast<uint32_t>(index.rows());
    int64_t count = 0;
    for (const RowSpan& span : bound.spans) {
        int32_t previous = -1;
        for (const int32_t* at = span.first; at != span.last; ++at) {
            const int32_t row = static_cast<uint32_t>(*at) < end ? *at : -1;
            if (row < 0 && span.of_number)
                fail_inconsistent("number_rows", std::to_string(*at), "a row below " + std::to_string(end));
            rows[static_cast<size_t>(count)] = row;
            count += (row > previous) | !bound.ascending;
            previous = row > previous ? row : previous;
        }
    }
    if (!bound.ascending) {
        std::sort(rows.begin(), rows.begin() + count);
        count = std::unique(rows.begin(), rows.begin() + count) - rows.begin();
        if (count > 0 && rows[0] < 0) {
            rows.erase(rows.begin());
            count -= 1;
        }
    }
    const bool one_list = bound.ascending && bound.spans.size() == 1;
    Evaluator evaluator(plan, index, one_list ? bound.spans[0] : RowSpan{});
    int64_t kept = 0;
    for (int64_t start = 0; start < count; start += kChunkRows) {
        const int64_t chunk = std::min(kChunkRows, count - start);
        const uint8_t* passes = evaluator.run(rows.data() + start, chunk);
        for (int64_t i = 0; i < chunk; ++i) {  // kept <= start + i
            const int32_t row = rows[static_cast<size_t>(start + i)];
            rows[static_cast<size_t>(kept)] = row;
            kept += passes[i] & (index.valid[row / 32] >> (row % 32) & 1);
        }
    }
    rows.resize(static_cast<size_t>(kept));
}

}  // namespace silvertriton::cpu
