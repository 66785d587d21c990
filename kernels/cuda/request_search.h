// One request on its way through the search, by one block: which clusters it takes, as kernels/cpu/probe.cpp says, and
// what it answers. All members are the same for all threads, and every function is called by all of them.
#pragma once

#include "scan.h"
#include "search.h"
#include "silvertriton/probing.h"

namespace silvertriton::cuda {

struct SearchShared {
    SelectShared select;
    uint64_t sorted[kSharedSort];
    int32_t hits;
};

// For a request that is not well.
__device__ inline void answer_nothing(const SearchResults& results, int64_t b) {
    for (int64_t i = thread_of_block(); i < results.width; i += thread_count()) {
        results.rows[b * results.width + i] = -1;
        results.ids[b * results.width + i] = -1;
        results.scores[b * results.width + i] = score_of(kMinusInfinityKey);
    }
    if (thread_of_block() < 4) results.stats[4 * b + thread_of_block()] = 0;
}

class RequestSearch {
  public:
    __device__ RequestSearch(const SearchRun& run, int64_t b, SearchShared& shared)
        : run_(run),
          index_(run.index),
          b_(b),
          state_(run.states[b]),
          clusters_(run.index.filters.clusters),
          total_(rows_passing(run, b, state_)),
          order_(run.order + b * run.order_room),
          taken_clusters_(run.taken + b * clusters_),
          taken_blocks_(run.taken_blocks + b * (clusters_ + 1)),
          hits_(run.hits + b * run.room),
          shared_(shared) {
        if (thread_of_block() == 0) taken_blocks_[0] = 0;
        __syncthreads();
    }

  protected:
    __device__ bool enough() const {
        return state_.probes > 0 && taken_ >= state_.probes && covered_ >= state_.candidates;
    }

    __device__ int32_t sum(int32_t value) { return block_sum(value, shared_.select.sums); }

    // The cluster at this place in order, which has to be among those listed, and its bound.
    __device__ int64_t cluster_at(int64_t place) const { return row_of(order_[place]); }
    __device__ uint32_t bound_at(int64_t place) const { return key_of(order_[place]); }
    __device__ int32_t passing_at(int64_t place) const { return cluster_passing(run_, b_, state_, cluster_at(place)); }

    // Puts at least `wanted` of the best clusters in order, if there are so many whose bound is a number.
    __device__ void order_clusters(int64_t wanted) {
        if (wanted <= ordered_) return;
        while (ordered_ < wanted) ordered_ = at_least(kFirstOrdered, kMoreOrdered * ordered_);
        const uint32_t* bounds = run_.bounds + b_ * clusters_;
        int32_t numbers = 0, of_worst = 0;
        for (int64_t c = thread_of_block(); c < clusters_; c += thread_count()) numbers += bounds[c] != 0;
        numbers = sum(numbers);
        listed_ = at_most(ordered_, numbers);
        uint32_t worst = 1;
        if (listed_ < numbers) {
            const auto bound = [bounds](int64_t c) { return bounds[c]; };
            const auto all = [](int64_t) { return true; };
            worst = select_largest(clusters_, static_cast<int32_t>(listed_), bound, all, shared_.select, &of_worst);
        } else {
            of_worst = numbers;
        }
        // Of equal bounds the first clusters.
        const auto packed = [bounds](int64_t c) {
            return static_cast<uint64_t>(bounds[c]) << 32 | (0xffffffffu - static_cast<uint32_t>(c));
        };
        const auto stands = [worst](uint64_t one) {
            return key_of(one) < worst ? Place::kBelow : key_of(one) > worst ? Place::kAbove : Place::kEqual;
        };
        uint64_t* const order = order_;
        const auto store = [order](int64_t to, uint64_t one) { order[to] = one; };
        take_best(clusters_, of_worst, packed, stands, store, shared_.select);
        sort_hits(order_, listed_, shared_.sorted, [](uint64_t x, uint64_t y) { return x > y; });
    }

    // Appends those of a tile of clusters that are wanted and hold passing rows.
    __device__ void take_tile(bool wanted, int64_t cluster, int32_t passing) {
        const bool takes = wanted && passing > 0;
        int32_t taken, blocks;
        const int32_t before = block_prefix_sum(takes, shared_.select.sums, &taken);
        const BlockRange range = takes ? blocks_of(index_.filters, cluster) : BlockRange{0, 0};
        const int32_t own = static_cast<int32_t>(range.last - range.first);
        const int32_t blocks_before = block_prefix_sum(own, shared_.select.sums, &blocks);
        if (takes) {
            taken_clusters_[taken_ + before] = static_cast<int32_t>(cluster);
            taken_blocks_[taken_ + before + 1] = static_cast<int32_t>(blocks_ + blocks_before + own);
        }
        taken_ += taken;
        covered_ += sum(takes ? passing : 0);
        blocks_ += blocks;
        __syncthreads();
    }

    // All clusters with a passing row.
    __device__ void take_all() {
        for (int64_t base = 0; base < clusters_; base += thread_count()) {
            const int64_t c = base + thread_of_block();
            take_tile(c < clusters_, c, c < clusters_ ? cluster_passing(run_, b_, state_, c) : 0);
        }
    }

    // Considers the clusters of the next round. True where no other is left.
    __device__ bool take_clusters() {
        const uint32_t floor = state_.probes > 0 ? kMinusInfinityKey : floor_;
        const int64_t end = at_least(at_least(kFirstRound, 2 * considered_), state_.probes);
        order_clusters(end);
        while (considered_ < end) {
            // A tile of clusters in order: those before the first that falls short, and before there are enough.
            const int64_t at = considered_ + thread_of_block(), last = at_most(considered_ + thread_count(), end);
            const bool reaches = at < last && at < listed_ && bound_at(at) >= floor;
            const int32_t passing = reaches ? passing_at(at) : 0;
            int32_t total;
            const int32_t taken_before = block_prefix_sum(passing > 0, shared_.select.sums, &total);
            const int32_t covered_before = block_prefix_sum(passing, shared_.select.sums, &total);
            const bool before_enough = !(state_.probes > 0 && taken_ + taken_before >= state_.probes &&
                                         covered_ + covered_before >= state_.candidates);
            const int32_t reaching = sum(reaches), count = sum(reaches && before_enough);
            take_tile(reaches && before_enough, reaches ? cluster_at(at) : 0, passing);
            considered_ += count;
            if (enough()) return false;
            if (count == reaching && considered_ < last) return true;
        }
        return false;
    }

    // The candidates' scores from their fp16 rows, best first, and what else is answered.
    __device__ void answer(int64_t count) {
        constexpr int kRows = 4;
        const int64_t dims = index_.vectors.dims, together = thread_count() / 2;
        for (int64_t base = thread_of_block() / 2; base - thread_of_block() / 2 < count; base += kRows * together) {
            const uint16_t* rows[kRows];
            float products[kRows];
            for (int n = 0; n < kRows; ++n) {
                const int64_t i = base + n * together;
                rows[n] = i < count ? index_.vectors.vectors + row_of(hits_[i]) * dims : nullptr;
            }
            dot_rows<1>(rows, run_.requests.query + b_ * dims, dims, products);
            for (int n = 0; n < kRows; ++n) {
                const int64_t i = base + n * together;
                if (i >= count || thread_of_block() % 2 != 0) continue;
                const int32_t row = row_of(hits_[i]);
                hits_[i] = packed_hit(products[n] * index_.vectors.scales[row], row);
            }
        }
        const int64_t* ids = index_.filters.item_ids.ids;
        sort_hits(hits_, count, shared_.sorted, [ids](uint64_t x, uint64_t y) { return better(x, y, ids); });
        const SearchResults& results = run_.results;
        for (int64_t i = thread_of_block(); i < results.width; i += thread_count()) {
            const bool exists = i < count;
            const int32_t row = exists ? row_of(hits_[i]) : -1;
            results.rows[b_ * results.width + i] = row;
            results.ids[b_ * results.width + i] = exists ? ids[row] : -1;
            results.scores[b_ * results.width + i] = score_of(exists ? key_of(hits_[i]) : kMinusInfinityKey);
        }
        if (thread_of_block() != 0) return;
        int32_t* stats = results.stats + 4 * b_;
        stats[0] = static_cast<int32_t>(taken_);
        stats[1] = static_cast<int32_t>(total_);
        stats[2] = static_cast<int32_t>(covered_);
        stats[3] = covered_ == total_;
    }

    const SearchRun& run_;
    const SearchIndex& index_;
    const int64_t b_;
    const RequestState state_;
    const int64_t clusters_;
    const int64_t total_;  // rows that pass
    uint64_t* const order_;
    int32_t* const taken_clusters_;
    int32_t* const taken_blocks_;
    uint64_t* const hits_;
    SearchShared& shared_;
    uint32_t floor_ = kMinusInfinityKey;            // what a cluster or a row has to reach
    int64_t ordered_ = 0;                           // clusters asked for in order
    int64_t listed_ = 0;                            // so many are
    int64_t considered_ = 0;                        // clusters that were taken or have no row that passes
    int64_t taken_ = 0, covered_ = 0, blocks_ = 0;  // clusters taken, passing rows and blocks in them
};

}  // namespace silvertriton::cuda
