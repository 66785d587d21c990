// The search of a request by one block alone: clusters are chosen and scanned in rounds, as on the CPU. It needs no
// more memory however many rows have equal scores, so that it also searches what the wide search (wide.h) could not
// hold.
#pragma once

#include "request_search.h"

namespace silvertriton::cuda {

// Blocks at most that a warp looks at between two barriers, and the hits at most of such a step.
constexpr int64_t kWarpBlocks = 32, kStepHits = kMostWarps * kWarpBlocks * kBlockRows;
// Hits beyond twice the candidates that wait for the next cut, which raises the floor.
constexpr int64_t kSlack = 512;

class SearchAlone : public RequestSearch {
  public:
    using RequestSearch::RequestSearch;

    __device__ void run() {
        ST_REACHED("alone");
        if (thread_of_block() == 0) shared_.hits = 0;
        __syncthreads();
        bool exhausted = total_ <= 0;
        if (is_exact(run_, state_, total_) && !exhausted) {
            take_all();
            scan(0);
            exhausted = true;
        }
        while (!exhausted && !enough()) {
            const int64_t scanned = taken_;
            while (!exhausted && taken_ == scanned && !enough()) exhausted = take_clusters();
            if (taken_ > scanned) scan(scanned);
        }
        answer(shared_.hits);
    }

  private:
    // Scans the clusters taken from `first` on; afterwards the floor is the worst candidate's.
    __device__ void scan(int64_t first) {
        if (state_.candidates == 0) return;
        const int64_t start = taken_blocks_[first], blocks = blocks_ - start;
        const int64_t of_warp = at_most(at_least((blocks + warp_count() - 1) / warp_count(), 1), kWarpBlocks);
        for (int64_t base = 0; base < blocks; base += warp_count() * of_warp) {
            const int64_t hits = shared_.hits;
            if (hits + kStepHits > run_.room || hits >= 2 * static_cast<int64_t>(state_.candidates) + kSlack) cut();
            __syncthreads();
            const int64_t of_lane = base + warp_of_thread() * of_warp + lane_of_thread();
            const bool exists = lane_of_thread() < of_warp && of_lane < blocks;
            int64_t block = 0;
            if (exists) {
                const int64_t taken = lower_bound(taken_blocks_, first, taken_ + 1, start + of_lane + 1) - 1;
                block =
                    blocks_of(index_.filters, taken_clusters_[taken]).first + start + of_lane - taken_blocks_[taken];
            }
            const uint32_t rows = exists ? rows_present(run_, b_, state_, block) : 0;
            for (unsigned some = __ballot_sync(kAllLanes, rows != 0); some != 0; some &= some - 1) {
                const int lane = __ffs(static_cast<int>(some)) - 1;
                scan_block(__shfl_sync(kAllLanes, block, lane), __shfl_sync(kAllLanes, rows, lane));
            }
            __syncthreads();
        }
        cut();
    }

    __device__ void scan_block(int64_t block, uint32_t rows) {
        float score = 0.0f;
        if (total_ > state_.candidates)
            score = __popc(rows) <= sparse_rows(run_, state_) ? score_vectors(run_, b_, block, rows)
                                                              : score_codes(run_, b_, block);
        const bool hit = (rows >> lane_of_thread() & 1u) != 0 && score == score && sortable(score) >= floor_;
        const auto row = static_cast<int32_t>(block * kBlockRows + lane_of_thread());
        append_hits(hit, packed_hit(score, row), 0, hits_, nullptr, run_.room, &shared_.hits);
    }

    // Keeps the best hits only.
    __device__ void cut() {
        __syncthreads();
        const int32_t count = shared_.hits;
        if (count >= state_.candidates) {
            floor_ = keep_best(hits_, count, state_.candidates, index_.filters.item_ids.ids, shared_.select);
            if (thread_of_block() == 0) shared_.hits = state_.candidates;
        }
        __syncthreads();
    }
};

}  // namespace silvertriton::cuda
