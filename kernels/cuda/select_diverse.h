// The last selection under rules, on the device. At most so many results of a group, and maximal marginal relevance
// (Carbonell and Goldstein, SIGIR 1998). All candidates are looked at for each result: they are some hundreds.
#pragma once

#include "dot.h"
#include "parts.h"
#include "select.h"
#include "write_selected.h"

namespace silvertriton::cuda {

struct DiverseCall {
    Scored scored;
    const int32_t* rows;  // [B, M]
    RowVectors units;     // the scales are inverse lengths
    Groups groups;
    Relevance relevance;
    SelectResults results;
    uint64_t* hits;       // [B, room] candidates in order
    int64_t room;         // the power of two from M on
    int32_t* left;        // [B, M] by place in order: 1 while it may be chosen
    float* relevances;    // [B, M]
    float* nearest;       // [B, M] greatest similarity to one that is chosen
    float* unit;          // [B, D] the vector chosen last, of length 1
    int32_t* chosen;      // [B, min(K, M)] places in order
    int64_t most_chosen;  // min(K, M)
};

struct DiverseShared {
    int32_t sums[kMostWarps];
    uint64_t sorted[kSharedSort];
    uint64_t best[kWarps];
};

// One request. All members are the same for all threads.
class Diverse {
  public:
    __device__ Diverse(const DiverseCall& call, int64_t b, DiverseShared& shared)
        : call_(call),
          shared_(shared),
          b_(b),
          first_(b * call.scored.candidates),
          hits_(call.hits + b * call.room),
          left_(call.left + first_),
          relevances_(call.relevances + first_),
          nearest_(call.nearest + first_),
          unit_(call.unit + b * call.units.dims),
          chosen_(call.chosen + b * call.most_chosen) {}

    __device__ void run() {
        sort();
        mark();
        const bool competes = call_.relevance.novelty > 0.0f;
        // Those of -inf and NaN come last, in order.
        int64_t finite = 0;
        if (competes) finite = count_of([this](int64_t i) { return key_of(hits_[i]) > kMinusInfinityKey; });
        int64_t next = competes ? finite : 0;
        if (competes && wants_more()) {
            const int64_t best = first_left(0, finite);
            if (best < finite) {
                scale_relevances(finite);
                choose(best);
                compare(best + 1, finite, true);
                for (int64_t from = best + 1; wants_more();) {
                    const int64_t winner = best_left(from, finite);
                    if (winner < 0) break;
                    choose(winner);
                    compare(from, finite, false);
                }
            }
        }
        while (wants_more()) {
            next = first_left(next, count_);
            if (next >= count_) break;
            choose(next);
        }
        write_selected(
            call_.scored, b_, count_chosen_,
            [this](int64_t i) { return static_cast<int64_t>(row_of(hits_[chosen_[i]])); }, call_.results);
    }

  private:
    struct Span {
        int64_t first, last;
        bool good;
    };

    __device__ bool wants_more() const { return count_chosen_ < call_.most_chosen; }
    __device__ int64_t row(int64_t place) const { return call_.rows[first_ + row_of(hits_[place])]; }
    __device__ float value(int64_t place) const { return score_of(key_of(hits_[place])); }

    template <typename Predicate>
    __device__ int64_t count_of(const Predicate& predicate) {
        int32_t own = 0;
        for (int64_t i = thread_of_block(); i < count_; i += kThreads) own += predicate(i);
        return block_sum(own, shared_.sums);
    }

    // The candidates in the order of select.
    __device__ void sort() {
        const Scored& scored = call_.scored;
        const int64_t* ids = scored.ids + first_;
        const bool good = scored.status[b_] == kStatusOk;
        for (int64_t base = 0; good && base < scored.candidates; base += kThreads) {
            const int64_t m = base + thread_of_block();
            const int32_t at = m < scored.candidates && ids[m] != -1 ? call_.rows[first_ + m] : -1;
            const bool exists = at >= 0 && at < call_.units.rows;
            int32_t total;
            const int64_t to = count_ + block_prefix_sum(exists, shared_.sums, &total);
            if (exists) hits_[to] = packed_hit(scored.values[first_ + m], static_cast<int32_t>(m));
            count_ += total;
        }
        __syncthreads();
        sort_hits(hits_, count_, shared_.sorted, [ids](uint64_t x, uint64_t y) { return better(x, y, ids); });
    }

    // The groups of a row; none that are sound where the table contradicts itself.
    __device__ Span groups_of_row(int64_t at) const {
        const int64_t first = call_.groups.offsets[at], last = call_.groups.offsets[at + 1];
        const bool good = 0 <= first && first <= last && last <= call_.groups.entries;
        return {good ? first : 0, good ? last : 0, good};
    }

    // How many of the chosen are in a group.
    __device__ int32_t chosen_of(int32_t group) const {
        int32_t count = 0;
        for (int64_t i = 0; i < count_chosen_; ++i) {
            const Span span = groups_of_row(row(chosen_[i]));
            for (int64_t j = span.first; j < span.last; ++j) count += call_.groups.groups[j] == group;
        }
        return count;
    }

    // Whoever is in a group that takes nobody, or whose groups are not sound, cannot be chosen.
    __device__ void mark() {
        for (int64_t i = thread_of_block(); i < count_; i += kThreads) {
            bool fits = true;
            if (call_.groups.offsets != nullptr) {
                const Span span = groups_of_row(row(i));
                fits = span.good;
                for (int64_t j = span.first; j < span.last; ++j) {
                    const int32_t group = call_.groups.groups[j];
                    if (group < 0 || group >= call_.groups.count || call_.groups.most[group] <= 0) fits = false;
                }
            }
            left_[i] = fits;
        }
        __syncthreads();
    }

    __device__ void choose(int64_t place) {
        const int64_t at = row(place);
        if (thread_of_block() == 0) {
            chosen_[count_chosen_] = static_cast<int32_t>(place);
            left_[place] = 0;
        }
        for (int64_t d = thread_of_block(); d < call_.units.dims && call_.relevance.novelty > 0.0f; d += kThreads)
            unit_[d] = float_of_half(call_.units.vectors[at * call_.units.dims + d]) * call_.units.scales[at];
        count_chosen_ += 1;
        __syncthreads();
        if (call_.groups.offsets == nullptr) return;
        // Groups only fill up: those of this row may be full now.
        const Span filled = groups_of_row(at);
        for (int64_t i = thread_of_block(); i < count_; i += kThreads) {
            if (left_[i] == 0) continue;
            const Span span = groups_of_row(row(i));
            for (int64_t j = span.first; j < span.last; ++j) {
                const int32_t group = call_.groups.groups[j];
                bool grows = false;
                for (int64_t f = filled.first; f < filled.last; ++f) grows |= call_.groups.groups[f] == group;
                if (grows && chosen_of(group) >= call_.groups.most[group]) {
                    left_[i] = 0;
                    break;
                }
            }
        }
        __syncthreads();
    }

    // The first place from `from` on that may be chosen, else `last`.
    __device__ int64_t first_left(int64_t from, int64_t last) {
        for (int64_t base = from; base < last; base += kThreads) {
            const int64_t i = base + thread_of_block();
            const bool is_left = i < last && left_[i] != 0;
            int32_t total;
            const int32_t before = block_prefix_sum(is_left, shared_.sums, &total);
            if (total == 0) continue;
            if (is_left && before == 0) shared_.best[0] = static_cast<uint64_t>(i);
            __syncthreads();
            const auto found = static_cast<int64_t>(shared_.best[0]);
            __syncthreads();
            return found;
        }
        return last;
    }

    // Values scaled to [0, 1]. In double: the range of floats may overflow one.
    __device__ void scale_relevances(int64_t finite) {
        const uint32_t infinite = sortable(__builtin_huge_valf());
        const int64_t above = count_of([this, infinite](int64_t i) { return key_of(hits_[i]) == infinite; });
        const double highest = above < finite ? value(above) : 0.0, lowest = above < finite ? value(finite - 1) : 0.0;
        for (int64_t i = thread_of_block(); i < finite; i += kThreads) {
            const bool greatest = i < above || !(highest > lowest);
            relevances_[i] = static_cast<float>(greatest ? 1.0 : (value(i) - lowest) / (highest - lowest));
        }
        __syncthreads();
    }

    // Similarity of places [from, last) to the one chosen last. One that is no number, of a damaged row, is left out.
    __device__ void compare(int64_t from, int64_t last, bool is_first) {
        constexpr int64_t kTogether = kThreads / 2;
        for (int64_t base = from; base < last; base += kTogether) {
            const int64_t i = base + thread_of_block() / 2;
            const bool exists = i < last && left_[i] != 0;
            const int64_t at = exists ? row(i) : 0, dims = call_.units.dims;
            const float product = dot_row(call_.units.vectors + at * dims, unit_, exists ? dims : 0);
            if (!exists || thread_of_block() % 2 != 0) continue;
            const float similarity = product * call_.units.scales[at];
            const float before = is_first ? score_of(kMinusInfinityKey) : nearest_[i];
            nearest_[i] = before < similarity ? similarity : before;
        }
        __syncthreads();
    }

    // The place of the greatest score, of equal ones the first; -1 where none is left.
    __device__ int64_t best_left(int64_t from, int64_t last) {
        uint64_t best = 0;
        for (int64_t i = from + thread_of_block(); i < last; i += kThreads) {
            if (left_[i] == 0) continue;
            const float score = call_.relevance.weight * relevances_[i] - call_.relevance.novelty * nearest_[i];
            const uint64_t own = packed_hit(score, static_cast<int32_t>(i));
            best = own > best ? own : best;
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            const uint64_t other = __shfl_xor_sync(kAllLanes, best, lanes);
            best = other > best ? other : best;
        }
        if (lane_of_thread() == 0) shared_.best[warp_of_thread()] = best;
        __syncthreads();
        for (int warp = 0; warp < kWarps; ++warp) best = shared_.best[warp] > best ? shared_.best[warp] : best;
        __syncthreads();
        return best == 0 ? -1 : row_of(best);
    }

    const DiverseCall& call_;
    DiverseShared& shared_;
    const int64_t b_, first_;
    uint64_t* const hits_;
    int32_t* const left_;
    float* const relevances_;
    float* const nearest_;
    float* const unit_;
    int32_t* const chosen_;
    int64_t count_ = 0, count_chosen_ = 0;
};

// Its scratch memory.
ST_HOST_DEVICE inline DiverseCall plan_select_diverse(Parts& parts, const Scored& scored, const RowVectors& units,
                                                      const Relevance& relevance) {
    DiverseCall call{};
    call.scored = scored;
    call.units = units;
    call.relevance = relevance;
    call.room = power_of_two(scored.candidates);
    call.most_chosen = scored.k < scored.candidates ? scored.k : scored.candidates;
    call.hits = parts.take<uint64_t>(scored.batch * call.room);
    call.left = parts.take<int32_t>(scored.batch * scored.candidates);
    call.relevances = parts.take<float>(scored.batch * scored.candidates);
    call.nearest = parts.take<float>(scored.batch * scored.candidates);
    call.unit = parts.take<float>(scored.batch * (relevance.novelty > 0.0f ? units.dims : 0));
    call.chosen = parts.take<int32_t>(scored.batch * call.most_chosen);
    return call;
}

// A block a request.
__device__ inline void run_select_diverse(const DiverseCall& call, DiverseShared& shared) {
    for (int64_t b = blockIdx.x; b < call.scored.batch; b += gridDim.x) {
        Diverse(call, b, shared).run();
        __syncthreads();
    }
}

}  // namespace silvertriton::cuda
