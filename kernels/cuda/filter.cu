// filter_rows, and the filter of a search: the program of each request over mask words.

#include "filter_tile.h"

namespace silvertriton::cuda {
namespace {

constexpr int kFilterThreads = 128;

ST_HOST_DEVICE inline int64_t tiles_of(const FilterRun& run) {
    return (run.index.blocks + kTileWords - 1) / kTileWords;
}

}  // namespace
}  // namespace silvertriton::cuda

// A block a request. Statuses are written, counts start at 0.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_plan_filter(silvertriton::cuda::FilterRun run) {
    using namespace silvertriton::cuda;
    __shared__ int32_t shared[2];
    for (int64_t b = blockIdx.x; b < run.call.batch; b += gridDim.x) {
        const int32_t status = plan_program(run, b, shared);
        if (thread_of_block() != 0) continue;
        run.call.status[b] = status;
        run.call.passing[b] = 0;
    }
}

// A block a tile of a request; tiles of the same words follow each other, so that requests find in the second-level
// cache what others read. In a search requests without a filter are left out, and nothing is written for those that are
// not well.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kFilterThreads, 10)
    silvertriton_filter(const __grid_constant__ silvertriton::cuda::FilterRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ FilterShared shared;
    const bool searches = run.cluster_passing != nullptr;
    const int64_t tiles = tiles_of(run) * run.call.batch;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t b = tile % run.call.batch, first_word = tile / run.call.batch * kTileWords;
        const bool good = run.call.status[b] == kStatusOk;
        if (searches && (!good || run.call.program[b * run.call.program_width + 1] == 0)) continue;
        const int32_t own = filter_tile<kFilterThreads>(run, b, first_word, good, shared);
        const int32_t passing = block_sum(own, shared.sums);
        if (thread_of_block() == 0 && passing > 0) atomicAdd(&run.call.passing[b], passing);
    }
}

namespace silvertriton::cuda {

void launch_filter(Stream stream, const FilterRun& run) {
    constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
    const auto blocks = static_cast<unsigned>(at_most(tiles_of(run) * run.call.batch, kMostBlocks));
    launch("filter", silvertriton_filter, dim3(blocks), kFilterThreads, stream, run);
}

int64_t filter_rows_bytes(const FilterCall& call) {
    return call.batch * call.program_width * 4;
}

void filter_rows(const Work& work, const FilterCall& call, const FilterIndex& index) {
    const FilterRun run{call, index, static_cast<int32_t*>(work.scratch), nullptr, nullptr, nullptr, 0};
    const auto stream = static_cast<Stream>(work.stream);
    launch("plan_filter", silvertriton_plan_filter, dim3(static_cast<unsigned>(call.batch)), kThreads, stream, run);
    launch_filter(stream, run);
}

}  // namespace silvertriton::cuda
