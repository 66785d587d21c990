// The wide search: the clusters that the requests of a batch take are scanned by all multiprocessors, a cluster once
// for all requests that take it. In three phases, each a choice of clusters by every request and a scan:
//   0. clusters that are taken for sure: all places in order before there is a worst candidate, at least four
//   1. of three times as many places after those, the ones whose bound reaches the worst candidate so far
//   2. all others whose bound reaches the worst candidate by then
// That is more than the CPU takes, which looks at its worst candidate after each round. So hits carry their cluster's
// place, and in the end a request knows what the worst candidate after each round was, which clusters it would have
// taken with that, and drops what the others gave: its answer is the CPU's. With a number of probes, and where all rows
// that pass are scanned, the clusters are known from the start; the phases then serve to raise the floor.
#pragma once

#include "request_search.h"

namespace silvertriton::cuda {

constexpr int32_t kPhases = 3;

class Choice : public RequestSearch {
  public:
    __device__ Choice(const SearchRun& run, int64_t b, SearchShared& shared)
        : RequestSearch(run, b, shared), progress_(run.wide.progress[b]), places_(run.wide.hit_places + b * run.room) {}

    // Phase 0.
    __device__ void start() {
        if (thread_of_block() == 0) progress_.hits = 0;
        bool failed = false, is_fixed = true;
        if (total_ > 0 && is_exact(run_, state_, total_)) {
            take_all();
            next_ = taken_;
            if (state_.candidates > 0) want_taken(0, taken_, 0);
        } else if (total_ > 0 && state_.probes > 0) {
            bool exhausted = false;
            while (!exhausted && !enough()) exhausted = take_clusters();
            if (state_.candidates > 0) {
                want_next(0);
            } else {
                next_ = taken_;
            }
        } else if (total_ > 0 && state_.candidates == 0) {
            failed = true;  // all clusters are taken for nothing
        } else if (total_ > 0) {
            is_fixed = false;
            next_ = kFirstRound;
            while (next_ < listed_after(next_ + 1) && passing_before(next_) < state_.candidates) next_ *= 2;
            want_places(0, at_most(next_, listed_), 0);
        }
        store(failed, is_fixed, kMinusInfinityKey);
    }

    // Phase 1 or 2: looks at the hits so far and wants more clusters.
    __device__ void go_on(int32_t phase) {
        if (!load()) return;
        if (phase == 2 && next_ >= (progress_.fixed != 0 ? taken_ : listed_)) return;
        const int64_t hits = progress_.hits;
        if (hits > run_.room) {
            ST_REACHED("no room");
            return store(true, true, floor_);
        }
        if (progress_.fixed != 0) {
            if (hits >= state_.candidates && state_.candidates > 0) keep(hits);
            want_next(phase);
            return store(false, true, floor_);
        }
        if (phase == 1) {
            if (hits < state_.candidates) return store(next_ < listed_, false, floor_);
            keep(hits);
            const int64_t last = at_most(4 * next_, listed_after(4 * next_));
            want_places(next_, at_most(reaching(floor_), last), phase);
            return store(false, false, floor_);
        }
        if (stop_ >= 0) return;
        for (int round = 0; round < 2 && stop_ < 0; ++round) end_round(hits);
        if (stop_ < 0) {
            floor_ = worst_before(hits, next_);
            while (listed_ == ordered_ && bound_at(listed_ - 1) >= floor_) order_clusters(ordered_ + 1);
            want_places(next_, reaching(floor_), phase);
        }
        store(false, false, floor_);
    }

    // True where the request has been answered; else it has to be searched alone.
    __device__ bool finish() {
        if (!load() || progress_.hits > run_.room) return false;
        int64_t hits = progress_.hits;
        if (progress_.fixed == 0) {
            if (stop_ < 0 && next_ >= listed_) stop_ = listed_;
            while (stop_ < 0) end_round(hits);
            const int64_t before = hits;
            hits = drop_from(hits, stop_);
            if (hits < before) ST_REACHED("dropped");
            taken_ = covered_ = 0;
            for (int64_t base = 0; base < stop_; base += thread_count()) {
                const int64_t place = base + thread_of_block();
                const int32_t passing = place < stop_ ? passing_at(place) : 0;
                taken_ += sum(passing > 0);
                covered_ += sum(passing);
            }
        }
        if (hits > state_.candidates)
            keep_best(hits_, hits, state_.candidates, index_.filters.item_ids.ids, shared_.select);
        answer(at_most(hits, state_.candidates));
        return true;
    }

  private:
    // Places are those in order, or with probes among the clusters taken. Those before `next_` have been wanted.

    __device__ bool load() {
        if (progress_.failed != 0) return false;
        floor_ = progress_.floor;
        ordered_ = progress_.ordered;
        listed_ = progress_.listed;
        taken_ = progress_.taken;
        covered_ = progress_.covered;
        next_ = progress_.next;
        stop_ = progress_.stop;
        return true;
    }

    __device__ void store(bool failed, bool is_fixed, uint32_t floor) {
        __syncthreads();
        if (thread_of_block() != 0) return;
        progress_.failed = failed;
        progress_.fixed = is_fixed;
        progress_.floor = floor;
        progress_.ordered = static_cast<int32_t>(ordered_);
        progress_.listed = static_cast<int32_t>(listed_);
        progress_.taken = static_cast<int32_t>(taken_);
        progress_.covered = static_cast<int32_t>(covered_);
        progress_.next = static_cast<int32_t>(next_);
        progress_.stop = static_cast<int32_t>(stop_);
    }

    // Keeps the best of hits that are wanted whatever comes; the floor is then the worst of them.
    __device__ void keep(int64_t hits) {
        floor_ = keep_best(hits_, hits, state_.candidates, index_.filters.item_ids.ids, shared_.select);
        if (thread_of_block() == 0) progress_.hits = state_.candidates;
        __syncthreads();
    }

    __device__ int64_t listed_after(int64_t wanted) {
        order_clusters(wanted);
        return listed_;
    }

    // Passing rows of the clusters at the first places in order.
    __device__ int64_t passing_before(int64_t places) {
        int64_t passing = 0;
        for (int64_t base = 0; base < at_most(places, listed_); base += thread_count()) {
            const int64_t place = base + thread_of_block();
            passing += sum(place < at_most(places, listed_) ? passing_at(place) : 0);
        }
        return passing;
    }

    // Places whose bound reaches a floor: they come first.
    __device__ int64_t reaching(uint32_t floor) {
        int64_t count = 0;
        for (int64_t base = 0; base < listed_; base += thread_count()) {
            const int64_t place = base + thread_of_block();
            const int32_t of_tile = sum(place < listed_ && bound_at(place) >= floor);
            count += of_tile;
            if (of_tile < thread_count()) break;
        }
        return count;
    }

    // The key of the worst candidate among the hits of clusters before a place.
    __device__ uint32_t worst_before(int64_t hits, int64_t place) {
        const int32_t* places = places_;
        const uint64_t* all = hits_;
        int32_t before = 0, rank;
        for (int64_t i = thread_of_block(); i < hits; i += thread_count()) before += places[i] < place;
        if (sum(before) < state_.candidates) return kMinusInfinityKey;
        const auto key = [all](int64_t i) { return key_of(all[i]); };
        const auto counts = [places, place](int64_t i) { return places[i] < place; };
        return select_largest(hits, state_.candidates, key, counts, shared_.select, &rank);
    }

    // The round of places [next_, 2 next_): it ends the search where a bound falls short of the worst candidate before.
    __device__ void end_round(int64_t hits) {
        const int64_t reach = reaching(worst_before(hits, next_));
        if (reach < 2 * next_) {
            stop_ = at_least(reach, next_);
        } else {
            next_ *= 2;
        }
    }

    // Takes out the hits of clusters from a place on; returns how many are left.
    __device__ int64_t drop_from(int64_t hits, int64_t place) {
        int64_t kept = 0;
        for (int64_t base = 0; base < hits; base += thread_count()) {
            const int64_t i = base + thread_of_block();
            const bool keeps = i < hits && places_[i] < place;
            const uint64_t hit = keeps ? hits_[i] : 0;
            int32_t total;
            const int32_t before = block_prefix_sum(keeps, shared_.select.sums, &total);
            if (keeps) hits_[kept + before] = hit;
            kept += total;
        }
        __syncthreads();
        return kept;
    }

    // Wants the clusters at these places in order that hold passing rows.
    __device__ void want_places(int64_t first, int64_t last, int32_t phase) {
        for (int64_t place = first + thread_of_block(); place < last; place += thread_count())
            if (passing_at(place) > 0) want(cluster_at(place), phase == 0 ? 0 : place, phase);
    }

    __device__ void want_taken(int64_t first, int64_t last, int32_t phase) {
        for (int64_t i = first + thread_of_block(); i < last; i += thread_count()) want(taken_clusters_[i], 0, phase);
    }

    // Of the clusters taken, as many as hold twice as many passing rows as candidates; then three times as many, or all
    // others where those are few; then the others.
    __device__ void want_next(int32_t phase) {
        int64_t last = phase == 0 ? 1 : phase == 1 && taken_ > 8 * next_ ? 4 * next_ : taken_;
        if (phase == 0) {
            while (last < taken_ && taken_rows(last) < int64_t{2} * state_.candidates) last *= 2;
        }
        last = at_most(last, taken_);
        want_taken(next_, last, phase);
        next_ = last;
    }

    __device__ int64_t taken_rows(int64_t count) {
        int64_t rows = 0;
        for (int64_t base = 0; base < count; base += thread_count()) {
            const int64_t i = base + thread_of_block();
            rows += sum(i < count ? cluster_passing(run_, b_, state_, taken_clusters_[i]) : 0);
        }
        return rows;
    }

    // The first request that wants a cluster puts its blocks on the list of the phase.
    __device__ void want(int64_t cluster, int64_t place, int32_t phase) {
        const WideRun& wide = run_.wide;
        ST_REACHED(phase == 0 ? "phase 0" : phase == 1 ? "phase 1" : "phase 2");
        wide.places[b_ * clusters_ + cluster] = static_cast<int32_t>(place);
        const int64_t at = phase * clusters_ + cluster;
        if (atomicOr(&wide.wanted[at * wide.wanted_words + b_ / 32], 1u << (b_ % 32)) != 0) return;
        if (wide.wanted_words > 1 && atomicAdd(&wide.claims[at], 1) != 0) return;
        const BlockRange blocks = blocks_of(index_.filters, cluster);
        const auto chunks = static_cast<int32_t>((blocks.last - blocks.first + kChunkBlocks - 1) / kChunkBlocks);
        const int32_t first = atomicAdd(&wide.chunk_counts[phase], chunks);
        for (int32_t chunk = 0; chunk < chunks; ++chunk)
            wide.chunks[phase * wide.chunk_room + first + chunk] = {static_cast<int32_t>(cluster), chunk};
    }

    Progress& progress_;
    int32_t* const places_;
    int64_t next_ = 0, stop_ = -1;
};

}  // namespace silvertriton::cuda
