// select_diverse: the last selection under rules. At most so many results of a group, and maximal marginal relevance
// (Carbonell and Goldstein, SIGIR 1998).

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "group_counts.h"
#include "operators.h"
#include "parallel.h"
#include "rows.h"
#include "silvertriton/half.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/order.h"
#include "sort_hits.h"
#include "write_selected.h"

namespace silvertriton::cpu {
namespace {

[[noreturn]] void fail_inconsistent(const char* argument, const std::string& got, const std::string& expected) {
    throw std::runtime_error(std::string("silvertriton::select_diverse: ") + argument + ": got " + got + ", expected " +
                             expected + "; the groups contradict themselves, build the artifact again");
}

// The rule of groups for one request after the other.
class AtMost {
  public:
    explicit AtMost(const Groups& groups) : groups_(groups) {}

    void clear() {
        if (groups_.offsets != nullptr) counts_.clear();
    }

    // Takes the row unless one of its groups is full. Checks the groups that it looks at: an artifact may be damaged.
    bool take(int64_t row) {
        if (!has_room(row)) return false;
        if (groups_.offsets == nullptr) return true;
        for (int64_t i = groups_.offsets[row]; i < groups_.offsets[row + 1]; ++i) counts_.add(groups_.groups[i]);
        return true;
    }

    bool has_room(int64_t row) const {
        if (groups_.offsets == nullptr) return true;
        const int64_t first = groups_.offsets[row], last = groups_.offsets[row + 1];
        if (first < 0 || last < first || last > groups_.entries)
            fail_inconsistent("group_offsets", std::to_string(first) + " .. " + std::to_string(last),
                              "an ascending span within " + std::to_string(groups_.entries) + " groups of rows");
        for (int64_t i = first; i < last; ++i) {
            const int32_t group = groups_.groups[i];
            if (group < 0 || group >= groups_.count)
                fail_inconsistent("groups", std::to_string(group), "a group below " + std::to_string(groups_.count));
            if (counts_.of(group) >= groups_.most[group]) return false;
        }
        return true;
    }

  private:
    Groups groups_;
    GroupCounts counts_;
};

// One request after the other, without allocating anew.
class Selection {
  public:
    Selection(const Scored& scored, const int32_t* rows, const RowVectors& units, const Groups& groups,
              const Relevance& relevance)
        : scored_(scored),
          rows_(rows),
          units_(units),
          relevance_(relevance),
          isa_(instruction_set()),
          width_((units.dims + 15) / 16 * 16),
          at_most_(groups) {}

    // Positions of the chosen candidates of request `b`, in order.
    const std::vector<int32_t>& choose(int64_t b) {
        first_ = b * scored_.candidates;
        chosen_.clear();
        at_most_.clear();
        sort(b);
        size_t next = 0;
        if (relevance_.novelty > 0.0f) {
            while (next < found_.size() && key_of(found_[next]) > kMinusInfinityKey) ++next;
            choose_relevant(next);
        }
        for (; next < found_.size() && !done(); ++next)
            if (at_most_.take(row(next))) chosen_.push_back(row_of(found_[next]));
        return chosen_;
    }

  private:
    // A candidate that competes: `position` among the sorted, its greatest similarity to the first `seen` of the
    // chosen, and its score from that.
    struct Competitor {
        float score, relevance, nearest;
        uint32_t position, seen;
    };

    static bool worse(const Competitor& a, const Competitor& b) {
        return a.score != b.score ? a.score < b.score : a.position > b.position;
    }

    bool done() const { return static_cast<int64_t>(chosen_.size()) == scored_.k; }
    int64_t row(size_t position) const { return rows_[first_ + row_of(found_[position])]; }

    void sort(int64_t b) {
        const int64_t* ids = scored_.ids + first_;
        found_.clear();
        for (int64_t m = 0; scored_.status[b] == kStatusOk && m < scored_.candidates; ++m) {
            const int32_t row = rows_[first_ + m];
            if (ids[m] != -1 && row >= 0 && row < units_.rows)
                found_.push_back(packed_hit(scored_.values[first_ + m], static_cast<int32_t>(m)));
        }
        const auto order = [ids](uint64_t x, uint64_t y) { return better(x, y, ids); };
        if (!std::is_sorted(found_.begin(), found_.end(), order)) sort_hits(found_, spare_, order);
    }

    // Among the first `count` of the sorted. Scores only fall while more is chosen. So the best by what is known of
    // each is brought up to date, and chosen if it is the best still: the others need not be looked at (Minoux, 1978).
    void choose_relevant(size_t count) {
        size_t best = 0;  // the most relevant comes first, whatever the weights
        while (best < count && !done() && !at_most_.take(row(best))) ++best;
        if (best == count || done()) return;
        chosen_units_.clear();
        push(best);
        start(best + 1, count);
        while (!heap_.empty() && !done()) {
            std::pop_heap(heap_.begin(), heap_.end(), worse);
            Competitor& top = heap_.back();
            const int64_t top_row = row(top.position);
            if (!at_most_.has_room(top_row)) {
                heap_.pop_back();
            } else if (top.seen < chosen_.size()) {
                for (; top.seen < chosen_.size(); ++top.seen)
                    top.nearest = std::max(top.nearest, similarity(top_row, top.seen));
                top.score = score(top);
                std::push_heap(heap_.begin(), heap_.end(), worse);
            } else {
                at_most_.take(top_row);
                push(top.position);
                heap_.pop_back();
            }
        }
    }

    // Competitors [from, count), compared with the one that is chosen.
    void start(size_t from, size_t count) {
        const auto value = [&](size_t position) { return score_of(key_of(found_[position])); };
        const float infinity = std::numeric_limits<float>::infinity();
        size_t finite = 0;
        while (finite < count && value(finite) == infinity) ++finite;
        // In double: the range of floats may overflow one.
        const double highest = finite < count ? value(finite) : 0.0, lowest = finite < count ? value(count - 1) : 0.0;
        heap_.clear();
        for_each_row(
            units_, static_cast<int64_t>(count - from), [&](int64_t i) { return row(from + static_cast<size_t>(i)); },
            [&](int64_t i, int64_t at) {
                const size_t position = from + static_cast<size_t>(i);
                const bool greatest = position < finite || !(highest > lowest);
                const double scaled = greatest ? 1.0 : (value(position) - lowest) / (highest - lowest);
                // A similarity that is not a number, of a damaged row, must not spoil the order: max leaves it out.
                const float nearest = std::max(-infinity, similarity(at, 0));
                Competitor one{0.0f, static_cast<float>(scaled), nearest, static_cast<uint32_t>(position), 1};
                one.score = score(one);
                heap_.push_back(one);
            });
        std::make_heap(heap_.begin(), heap_.end(), worse);
    }

    void push(size_t position) {
        chosen_.push_back(row_of(found_[position]));
        const int64_t at = row(position);
        const size_t first = chosen_units_.size();
        chosen_units_.resize(first + static_cast<size_t>(width_), 0.0f);
        for (int64_t d = 0; d < units_.dims; ++d)
            chosen_units_[first + static_cast<size_t>(d)] =
                from_half(units_.vectors[at * units_.dims + d]) * units_.scales[at];
    }

    float similarity(int64_t at, size_t chosen) const {
        return isa_.dot_row(units_.vectors + at * units_.dims,
                            chosen_units_.data() + chosen * static_cast<size_t>(width_), units_.dims) *
               units_.scales[at];
    }

    float score(const Competitor& one) const {
        return relevance_.weight * one.relevance - relevance_.novelty * one.nearest;
    }

    const Scored& scored_;
    const int32_t* rows_;
    const RowVectors& units_;
    const Relevance& relevance_;
    const InstructionSet& isa_;
    const int64_t width_;
    AtMost at_most_;
    int64_t first_ = 0;
    std::vector<uint64_t> found_, spare_;
    std::vector<int32_t> chosen_;
    std::vector<float> chosen_units_;  // [chosen, width]
    std::vector<Competitor> heap_;
};

}  // namespace

void select_diverse(const Scored& scored, const int32_t* rows, const RowVectors& units, const Groups& groups,
                    const Relevance& relevance, const SelectResults& results) {
    parallel_for(scored.batch, 1, [&](int64_t begin, int64_t end) {
        Selection selection(scored, rows, units, groups, relevance);
        for (int64_t b = begin; b < end; ++b) {
            const std::vector<int32_t>& chosen = selection.choose(b);
            write_selected(
                scored, b, static_cast<int64_t>(chosen.size()),
                [&](int64_t i) { return chosen[static_cast<size_t>(i)]; }, results);
        }
    });
}

}  // namespace silvertriton::cpu
