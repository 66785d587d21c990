// select: the last selection, on final values, with what belongs to the chosen.

#include "operators.h"
#include "select.h"
#include "write_selected.h"

namespace silvertriton::cuda {

struct SelectCall {
    Scored scored;
    SelectResults results;
    uint64_t* hits;  // [B, room]
    int64_t room;    // the power of two from M on
};

}  // namespace silvertriton::cuda

// A block a request.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_select(silvertriton::cuda::SelectCall call) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ SelectShared shared;
    __shared__ uint64_t sorted[kSharedSort];
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
            const int64_t to = count + block_prefix_sum(exists, shared.sums, &total);
            if (exists) hits[to] = packed_hit(scored.values[b * scored.candidates + m], static_cast<int32_t>(m));
            count += total;
        }
        __syncthreads();
        const int64_t wanted = at_most(scored.k, count);
        if (wanted > 0 && wanted < count) keep_best(hits, count, static_cast<int32_t>(wanted), ids, shared);
        sort_hits(hits, wanted, sorted, [ids](uint64_t x, uint64_t y) { return better(x, y, ids); });
        write_selected(
            scored, b, wanted, [hits](int64_t i) { return static_cast<int64_t>(row_of(hits[i])); }, call.results);
        __syncthreads();
    }
}

namespace silvertriton::cuda {

int64_t select_bytes(const Scored& scored) {
    return scored.batch * power_of_two(scored.candidates) * 8;
}

void select(const Work& work, const Scored& scored, const SelectResults& results) {
    launch("select", silvertriton_select, dim3(static_cast<unsigned>(scored.batch)), kRequestThreads,
           static_cast<Stream>(work.stream),
           SelectCall{scored, results, static_cast<uint64_t*>(work.scratch), power_of_two(scored.candidates)});
}

}  // namespace silvertriton::cuda
