// The last step of a search: requests are answered, those that could not be searched widely alone. A block a request.

#include "alone.h"
#include "parts.h"
#include "search_kernels.h"
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
            const int64_t width = run.results.width;
            for (int64_t i = thread_of_block(); i < width; i += thread_count()) {
                run.results.rows[b * width + i] = -1;
                run.results.ids[b * width + i] = -1;
                run.results.scores[b * width + i] = score_of(kMinusInfinityKey);
            }
            if (thread_of_block() < 4) run.results.stats[4 * b + thread_of_block()] = 0;
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

SearchRun plan_search(Parts& parts, const SearchRequests& requests, const SearchIndex& index,
                      const SearchLimits& limits, const SearchResults& results) {
    const int64_t batch = requests.batch, clusters = index.filters.clusters;
    // Two words hold no filter: nothing is kept for one.
    const bool filters = requests.program_width > 2;
    SearchRun run{};
    run.requests = requests;
    run.index = index;
    run.limits = limits;
    run.results = results;
    run.states = parts.take<RequestState>(batch);
    run.query_groups = padded_groups(index.items.dims);
    run.query_codes = parts.take<int32_t>(batch * run.query_groups);
    run.units = parts.take<float>(batch * index.vectors.dims);
    run.projected = parts.take<float>(index.projection == nullptr ? 0 : batch * index.items.dims);
    const int64_t excluded = requests.exclude_width == 0 ? 0 : power_of_two(requests.exclude_width);
    run.excluded = parts.take<int32_t>(batch * excluded);
    int32_t* excluded_count = parts.take<int32_t>(batch);
    run.bounds = parts.take<uint32_t>(batch * clusters);
    run.order_room = power_of_two(clusters);
    run.order = parts.take<uint64_t>(batch * run.order_room);
    run.taken = parts.take<int32_t>(batch * clusters);
    run.taken_blocks = parts.take<int32_t>(batch * (clusters + 1));
    run.room = 4 * limits.max_candidates + kSlack + kStepHits;
    const bool is_wide = index.filters.blocks >= wide_blocks();
    // The first phase of a wide search has no floor: four clusters, or as many passing rows as candidates.
    if (is_wide) run.room += at_most(8 * index.filters.rows() / at_least(clusters, 1) + limits.exact_rows, kMostRoom);
    run.hits = parts.take<uint64_t>(batch * run.room);
    if (is_wide) plan_wide(parts, run);
    FilterRun& filter = run.filter;
    filter.index = index.filters;
    filter.call = {requests.program,
                   batch,
                   requests.program_width,
                   requests.fingerprint,
                   parts.take<uint32_t>(filters ? batch * index.filters.blocks : 0),
                   parts.take<int32_t>(batch),
                   results.status};
    filter.slots = parts.take<int32_t>(filters ? batch * requests.program_width : 0);
    filter.cluster_passing = parts.take<int32_t>(batch * clusters);
    filter.excluded = excluded == 0 ? nullptr : run.excluded;
    filter.excluded_count = excluded_count;
    filter.excluded_width = excluded;
    return run;
}

}  // namespace

int64_t search_bytes(const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits) {
    Parts parts(nullptr);
    plan_search(parts, requests, index, limits, {});
    return parts.bytes();
}

void search(const Work& work, const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
            const SearchResults& results) {
    if (requests.batch == 0) return;  // no block of `prepare` would clear what `scan` reads
    Parts parts(work.scratch);
    const SearchRun run = plan_search(parts, requests, index, limits, results);
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
