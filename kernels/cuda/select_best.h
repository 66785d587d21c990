// The last selection, on final values, with what belongs to the chosen, on the device.
#pragma once

#include "select.h"
#include "write_selected.h"

namespace silvertriton::cuda {

struct SelectCall {
    Scored scored;
    SelectResults results;
    uint64_t* hits;  // [B, room]
    int64_t room;    // the power of two from M on
};

struct SelectBestShared {
    SelectShared select;
    uint64_t sorted[kSharedSort];
};

// A block a request.
__device__ inline void run_select(const SelectCall& call, SelectBestShared& shared) {
    const Scored& scored = call.scored;
    for (int64_t b = blockIdx.x; b < scored.batch; b += gridDim.x) {
        uint64_t* hits = call.hits + b * call.room;
        const int64_t* ids = scored.ids + b * scored.candidates;
        int64_t count = 0;
        const bool good = scored.status[b] == kStatusOk;
        for (int64_t base = 0; good && base < scored.candidates; base += thread_count()) {
            const int64_t m = base + thread_of_block();
            const bool exists = m < scored.candidates && ids[m] != -1;
            int32_t total;
            const int64_t to = count + block_prefix_sum(exists, shared.select.sums, &total);
            if (exists) hits[to] = packed_hit(scored.values[b * scored.candidates + m], static_cast<int32_t>(m));
            count += total;
        }
        __syncthreads();
        const int64_t wanted = at_most(scored.k, count);
        if (wanted > 0 && wanted < count) keep_best(hits, count, static_cast<int32_t>(wanted), ids, shared.select);
        sort_hits(hits, wanted, shared.sorted, [ids](uint64_t x, uint64_t y) { return better(x, y, ids); });
        write_selected(
            scored, b, wanted, [hits](int64_t i) { return static_cast<int64_t>(row_of(hits[i])); }, call.results);
        __syncthreads();
    }
}

}  // namespace silvertriton::cuda
