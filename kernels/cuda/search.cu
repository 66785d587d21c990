// The last step of a search: requests are answered, those that could not be searched widely alone. A block a request.

#include "search_kernels.h"
#include "search_memory.h"
#include "wide.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_search(const __grid_constant__ silvertriton::cuda::SearchRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ SearchShared shared;
    for (int64_t b = blockIdx.x; b < run.requests.batch; b += gridDim.x) {
        if (run.results.status[b] == kStatusOk) {
            const bool answered = run.wide.progress != nullptr && Choice(run, b, shared).finish();
            if (!answered) SearchAlone(run, b, shared).run();
        } else {
            answer_nothing(run.results, b);
        }
        __syncthreads();
    }
}

namespace silvertriton::cuda {
namespace {

// Hits at most for which a wide search has more room.
constexpr int64_t kMostRoom = 65536;

void plan_wide(Parts& parts, SearchRun& run) {
    const int64_t batch = run.requests.batch, clusters = run.index.filters.clusters;
    WideRun& wide = run.wide;
    wide.progress = parts.take<Progress>(batch);
    wide.places = parts.take<int32_t>(batch * clusters);
    wide.hit_places = parts.take<int32_t>(batch * run.room);
    wide.wanted_words = (batch + 31) / 32;
    wide.chunk_room = run.index.filters.blocks / kChunkBlocks + clusters + 1;
    wide.chunks = parts.take<Chunk>(kPhases * wide.chunk_room);
    const int64_t words = kPhases * clusters * wide.wanted_words, claims = kPhases * clusters;
    wide.cleared_words = words + claims + kPhases;
    wide.cleared = parts.take<uint32_t>(wide.cleared_words);
    if (wide.cleared == nullptr) return;
    wide.wanted = wide.cleared;
    wide.claims = reinterpret_cast<int32_t*>(wide.cleared + words);
    wide.chunk_counts = wide.claims + claims;
}

// Of an index whose searches are wide, so many hits more: the first phase has no floor, four clusters or as many
// passing rows as candidates.
int64_t more_room(const SearchIndex& index, const SearchLimits& limits) {
    if (index.filters.blocks < wide_blocks()) return 0;
    const int64_t clusters = at_least(index.filters.clusters, 1);
    return at_most(8 * index.filters.rows() / clusters + limits.exact_rows, kMostRoom);
}

SearchRun plan(Parts& parts, const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
               const SearchResults& results) {
    SearchRun run = plan_search(parts, requests, index, limits, results, more_room(index, limits));
    if (index.filters.blocks >= wide_blocks()) plan_wide(parts, run);
    return run;
}

}  // namespace

int64_t search_bytes(const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits) {
    Parts parts(nullptr);
    plan(parts, requests, index, limits, {});
    return parts.bytes();
}

void search(const Work& work, const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
            const SearchResults& results) {
    if (requests.batch == 0) return;  // no block of `prepare` would clear what `scan` reads
    Parts parts(work.scratch);
    const SearchRun run = plan(parts, requests, index, limits, results);
    const auto stream = static_cast<Stream>(work.stream);
    launch_prepare(stream, run);
    if (requests.program_width > 2) launch_filter(stream, run.filter);
    launch_bounds(stream, run);
    for (int32_t phase = 0; run.wide.progress != nullptr && phase < kPhases; ++phase) {
        launch_choose(stream, run, phase);
        launch_scan(stream, run, phase);
    }
    launch("search", silvertriton_search, dim3(static_cast<unsigned>(requests.batch)), kRequestThreads, stream, run);
}

}  // namespace silvertriton::cuda
