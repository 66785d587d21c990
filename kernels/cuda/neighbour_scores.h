// How near candidates are to a history in a graph of items, on the device. The neighbours of the history's items are
// looked up among the candidates.
#pragma once

#include "parts.h"
#include "select.h"
#include "silvertriton/arguments.h"
#include "silvertriton/find_row.h"

namespace silvertriton::cuda {

struct NeighboursCall {
    const int64_t* history;  // [B, L]
    int64_t history_width;
    const int32_t* rows;  // [B, M]
    int64_t batch, candidates;
    ItemIds items;
    Neighbours graph;
    int64_t most;
    float* sums;       // [B, M]
    float* maxima;     // [B, M]
    uint64_t* by_row;  // [B, power of two from M on]: rows and positions, ascending
    int32_t* known;    // [B, L]: places of the history's items, newest first
    int64_t room;
};

struct NeighboursShared {
    uint64_t sorted[kSharedSort];
    int32_t sums[kMostWarps];
};

// Writes the places of the newest items of a history that the catalogue has; returns how many.
__device__ inline int64_t find_known(const NeighboursCall& call, int64_t b, NeighboursShared& shared) {
    int64_t found = 0, seen = 0;
    for (int64_t base = 0; base < call.history_width && seen < call.most; base += kThreads) {
        const int64_t at = call.history_width - 1 - base - thread_of_block();
        const int64_t id = at < 0 ? -1 : call.history[b * call.history_width + at];
        int32_t total, ids;
        const int64_t before = seen + block_prefix_sum(id >= 0, shared.sums, &ids);
        const int64_t item = id >= 0 && before < call.most ? find_item(call.items, id) : -1;
        const int64_t to = found + block_prefix_sum(item >= 0, shared.sums, &total);
        if (item >= 0) call.known[b * call.history_width + to] = static_cast<int32_t>(item);
        found += total;
        seen += ids;
    }
    __syncthreads();
    return found;
}

// Its scratch memory.
ST_HOST_DEVICE inline NeighboursCall plan_neighbour_scores(Parts& parts, int64_t batch, int64_t candidates,
                                                           int64_t history_width) {
    NeighboursCall call{};
    call.history_width = history_width;
    call.batch = batch;
    call.candidates = candidates;
    call.room = power_of_two(candidates);
    call.by_row = parts.take<uint64_t>(call.room <= kSharedSort ? 0 : batch * call.room);
    call.known = parts.take<int32_t>(batch * history_width);
    return call;
}

// A block a request. Items one after the other, so that sums have one order.
__device__ inline void run_neighbour_scores(const NeighboursCall& call, NeighboursShared& shared) {
    for (int64_t b = blockIdx.x; b < call.batch; b += gridDim.x) {
        float* sums = call.sums + b * call.candidates;
        float* maxima = call.maxima + b * call.candidates;
        const int32_t* rows = call.rows + b * call.candidates;
        const bool fits = call.room <= kSharedSort;
        uint64_t* by_row = fits ? shared.sorted : call.by_row + b * call.room;
        for (int64_t m = thread_of_block(); m < call.room; m += kThreads) {
            const bool exists = m < call.candidates && rows[m] >= 0;
            by_row[m] = exists ? static_cast<uint64_t>(rows[m]) << 32 | static_cast<uint64_t>(m) : ~0ull;
        }
        for (int64_t m = thread_of_block(); m < call.candidates; m += kThreads) sums[m] = maxima[m] = 0.0f;
        sort_block(by_row, call.room, [](uint64_t x, uint64_t y) { return x < y; });
        const int64_t known = find_known(call, b, shared);
        for (int64_t k = 0; k < known; ++k) {
            const int64_t first = call.known[b * call.history_width + k] * call.graph.width;
            int32_t ends = 0;
            for (int64_t base = 0; base < call.graph.width && ends == 0; base += kThreads) {
                const int64_t j = base + thread_of_block();
                const int32_t row = j < call.graph.width ? call.graph.rows[first + j] : -1;
                // None but those before the first that is negative.
                const int32_t before = block_prefix_sum(row < 0, shared.sums, &ends);
                if (row < 0 || before > 0) continue;
                const uint64_t wanted = static_cast<uint64_t>(row) << 32;
                const int64_t at = lower_bound(by_row, 0, call.room, wanted);
                if (at == call.room || by_row[at] >> 32 != static_cast<uint64_t>(row)) continue;
                const auto m = static_cast<int64_t>(by_row[at] & 0xffffffffu);
                const float weight = call.graph.weights[first + j];
                sums[m] += weight;
                maxima[m] = weight > maxima[m] ? weight : maxima[m];
            }
            __syncthreads();
        }
        // A row that is asked for more than once was counted where it first stands.
        for (int64_t i = thread_of_block(); i < call.room; i += kThreads) {
            const uint64_t row = by_row[i] >> 32;
            if (i == 0 || by_row[i] == ~0ull || by_row[i - 1] >> 32 != row) continue;
            const auto first = static_cast<int64_t>(by_row[lower_bound(by_row, 0, i, row << 32)] & 0xffffffffu);
            const auto m = static_cast<int64_t>(by_row[i] & 0xffffffffu);
            sums[m] = sums[first];
            maxima[m] = maxima[first];
        }
        __syncthreads();
    }
}

}  // namespace silvertriton::cuda
