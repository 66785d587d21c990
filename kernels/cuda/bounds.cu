// What each cluster may hold for each request: the product of its mean and the query, and its spread within reach; and
// how many of its rows pass the request's filter.

#include "count_passing.h"
#include "search_kernels.h"
#include "silvertriton/probing.h"
#include "tile.h"

// A warp 32 clusters, a row of the grid eight requests. Those that probe no clusters in order get no
// bounds.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_bounds(const __grid_constant__ silvertriton::cuda::SearchRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    const SearchIndex& index = run.index;
    const int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_thread();
    if (block >= index.centroids.blocks) return;
    const auto groups = static_cast<int32_t>(groups_of(index.centroids.dims));
    const auto* codes = reinterpret_cast<const int32_t*>(index.centroids.codes) + block * groups * kBlockRows;
    const int64_t cluster = block * kBlockRows + 4 * lane_group();
    const float4 scale = *reinterpret_cast<const float4*>(index.centroids.scales + cluster);
    const float4 spread = *reinterpret_cast<const float4*>(index.centroid_spreads + cluster);
    const float scales[4] = {scale.x, scale.y, scale.z, scale.w}, spreads[4] = {spread.x, spread.y, spread.z, spread.w};
    const int64_t batch = run.requests.batch;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kTileQueries; first < batch;
         first += gridDim.y * kTileQueries) {
        for (int64_t b = first; b < at_most(first + kTileQueries, batch); ++b)
            if (run.results.status[b] == kStatusOk && run.states[b].filtered != 0) count_passing(run, b, block);
        const int64_t of_lane = first + lane_group();
        const int32_t* query = of_lane < batch ? run.query_codes + of_lane * run.query_groups : nullptr;
        int32_t sums[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        for (int32_t from = 0; from < groups; from += kSlabGroups) {
            int4 held[kHeld];
            int32_t factors[kHeld];
            load_codes(codes, groups, from, held);
            load_query(query, from, factors);
            multiply(held, factors, groups - from, sums);
        }
        for (int p = 0; p < 2; ++p) {
            const int64_t b = first + 2 * lane_of_group() + p;
            if (b >= batch || run.results.status[b] != kStatusOk) continue;
            const RequestState state = run.states[b];
            const int64_t passing = rows_passing(run, b, state);
            if (passing <= 0 || is_exact(run, state, passing)) continue;
            const float reach = reach_at(index, passing);
            for (int r = 0; r < 4; ++r) {
                if (cluster + r >= index.filters.clusters) continue;
                float bound = static_cast<float>(sums[p][r]) * scales[r];
                bound += reach * state.length * spreads[r];
                run.bounds[b * index.filters.clusters + cluster + r] = bound == bound ? sortable(bound) : 0;
            }
        }
    }
}

namespace silvertriton::cuda {

void launch_bounds(Stream stream, const SearchRun& run) {
    const auto blocks = static_cast<unsigned>((run.index.centroids.blocks + kWarps - 1) / kWarps);
    const int64_t tiles = (run.requests.batch + kTileQueries - 1) / kTileQueries;
    launch("bounds", silvertriton_bounds, dim3(blocks, static_cast<unsigned>(tiles < 65535 ? tiles : 65535)), kThreads,
           stream, run);
}

}  // namespace silvertriton::cuda
