// The plugin of Search. A block does all for a request: a plugin must not trust what another has written, as TensorRT
// runs them to see how long they take, and says nothing of what they are given then.

#include "../count_passing.h"
#include "../filter_tile.h"
#include "../prepare.h"
#include "../search_memory.h"
#include "numbers.h"

namespace silvertriton::cuda {
namespace {

struct PluginShared {
    SearchRun run;
    PrepareShared prepare;
    FilterShared filter;
    SearchShared search;
};

// Runs the program of a request; counts the rows that pass.
__device__ void filter_request(const FilterRun& run, int64_t b, FilterShared& shared) {
    int32_t passing = 0;
    for (int64_t first = 0; first < run.index.blocks; first += kTileWords) {
        __syncthreads();
        passing += filter_tile<kRequestThreads>(run, b, first, true, shared);
    }
    passing = block_sum(passing, shared.sums);
    if (thread_of_block() == 0) run.call.passing[b] = passing;
    __syncthreads();
}

// What each cluster may hold, and how many of its rows pass, as in bounds.cu.
__device__ void find_bounds(const SearchRun& run, int64_t b) {
    const SearchIndex& index = run.index;
    const RequestState state = run.states[b];
    const int64_t passing = rows_passing(run, b, state);
    const bool is_wanted = passing > 0 && !is_exact(run, state, passing);
    const float reach = is_wanted ? reach_at(index, passing) : 0.0f;
    const int64_t groups = groups_of(index.centroids.dims);
    for (int64_t block = warp_of_thread(); block < index.centroids.blocks; block += warp_count()) {
        if (state.filtered != 0) count_passing(run, b, block);
        if (!is_wanted) continue;
        const auto* codes = reinterpret_cast<const int32_t*>(index.centroids.codes) + block * groups * kBlockRows;
        const int32_t sum = dot_block(codes, groups, run.query_codes + b * run.query_groups);
        const int64_t cluster = block * kBlockRows + lane_of_thread();
        if (cluster >= index.filters.clusters) continue;
        float bound = static_cast<float>(sum) * index.centroids.scales[cluster];
        bound += reach * state.length * index.centroid_spreads[cluster];
        run.bounds[b * index.filters.clusters + cluster] = bound == bound ? sortable(bound) : 0;
    }
}

}  // namespace
}  // namespace silvertriton::cuda

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads) silvertriton_plugin_search(
    const float* query, const int64_t* filter, const int64_t* exclude, const int32_t* limits, const int32_t* status,
    const float* projection, const int8_t* codes, const float* scales, const int32_t* row_codes,
    const uint16_t* vectors, const int64_t* ids, const int32_t* item_rows, const int8_t* centroid_codes,
    const float* centroid_scales, const float* centroid_spreads, const float* reach, const int32_t* feature_terms,
    const int64_t* term_keys, const int32_t* term_bitmap, const int64_t* term_postings, const int32_t* postings,
    const uint32_t* bitmaps, const int32_t* feature_number, const double* number_values, const int32_t* number_rows,
    const int32_t* number_known, const uint32_t* number_bitmaps, const uint32_t* valid, const int32_t* cluster_blocks,
    const silvertriton::cuda::SearchNumbers* numbers, int32_t batch, int32_t program_width, int32_t exclude_width,
    int32_t* rows, int64_t* found, float* scores, int32_t* stats, int32_t* first_status, int64_t* scratch) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ PluginShared shared;
    if (thread_of_block() == 0) {
        const SearchNumbers n = *numbers;
        const int64_t item_room = n.blocks * kBlockRows;
        const FilterIndex filters{{ids, item_rows, item_room, n.items},
                                  feature_terms,
                                  term_keys,
                                  term_bitmap,
                                  term_postings,
                                  postings,
                                  bitmaps,
                                  feature_number,
                                  number_values,
                                  number_rows,
                                  number_known,
                                  number_bitmaps,
                                  valid,
                                  cluster_blocks,
                                  n.features,
                                  n.terms,
                                  n.postings,
                                  n.bitmaps,
                                  n.numbers,
                                  n.buckets,
                                  n.blocks,
                                  n.clusters};
        const SearchIndex index{
            {codes, scales, n.blocks, n.code_dims},
            {centroid_codes, centroid_scales, (n.clusters + kBlockRows - 1) / kBlockRows, n.code_dims},
            {n.by_row != 0 ? row_codes : nullptr},
            {vectors, scales, item_room, n.dims},
            n.projects != 0 ? projection : nullptr,
            centroid_spreads,
            reach,
            n.reach,
            filters};
        Parts parts(scratch);
        shared.run = plan_search(
            parts, {query, filter, exclude, limits, status, batch, program_width, exclude_width, n.fingerprint}, index,
            {n.probes, n.candidates, n.max_candidates, n.exact_rows},
            {rows, found, scores, stats, first_status, n.max_candidates}, 0);
    }
    __syncthreads();
    const SearchRun& run = shared.run;
    for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
        prepare_request(run, b, shared.prepare);
        __syncthreads();
        if (first_status[b] == kStatusOk) {
            if (run.states[b].filtered != 0) filter_request(run.filter, b, shared.filter);
            find_bounds(run, b);
            __syncthreads();
            SearchAlone(run, b, shared.search).run();
        } else {
            answer_nothing(run.results, b);
        }
        __syncthreads();
    }
}
