// What each cluster may hold for each request: the product of its mean and the query, and its spread within reach.

#include "dot.h"
#include "search.h"
#include "search_kernels.h"
#include "silvertriton/probing.h"

namespace silvertriton::cuda {
namespace {

// Requests that share the reading of a block of centroids.
constexpr int kTogether = 8;

}  // namespace
}  // namespace silvertriton::cuda

// A warp 32 clusters, a row of the grid eight requests. Those that probe no clusters in order are left out.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_bounds(silvertriton::cuda::SearchRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    const SearchIndex& index = run.index;
    const int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_thread();
    if (block >= index.centroids.blocks) return;
    const int64_t groups = groups_of(index.centroids.dims), cluster = block * kBlockRows + lane_of_thread();
    const auto* codes = reinterpret_cast<const int32_t*>(index.centroids.codes) + block * groups * kBlockRows;
    const float scale = index.centroids.scales[cluster], spread = index.centroid_spreads[cluster];
    const int64_t batch = run.requests.batch;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kTogether; first < batch; first += gridDim.y * kTogether) {
        int32_t sums[kTogether];
        if (first + kTogether <= batch) {
            dot_block<kTogether>(codes, groups, run.query_codes + first * run.query_groups, run.query_groups, sums);
        } else {
            for (int q = 0; q < kTogether; ++q) {
                int32_t sum[1] = {0};
                if (first + q < batch)
                    dot_block<1>(codes, groups, run.query_codes + (first + q) * run.query_groups, 0, sum);
                sums[q] = sum[0];
            }
        }
        for (int q = 0; q < kTogether; ++q) {
            const int64_t b = first + q;
            if (b >= batch || run.results.status[b] != kStatusOk || cluster >= index.filters.clusters) continue;
            const RequestState state = run.states[b];
            const int64_t passing = rows_passing(run, b, state);
            if (passing <= 0 || is_exact(run, state, passing)) continue;
            float bound = static_cast<float>(sums[q]) * scale;
            bound += reach_at(index, passing) * state.length * spread;
            run.bounds[b * index.filters.clusters + cluster] = bound == bound ? sortable(bound) : 0;
        }
    }
}

namespace silvertriton::cuda {

void launch_bounds(Stream stream, const SearchRun& run) {
    const auto blocks = static_cast<unsigned>((run.index.centroids.blocks + kWarps - 1) / kWarps);
    const int64_t tiles = (run.requests.batch + kTogether - 1) / kTogether;
    launch("bounds", silvertriton_bounds, dim3(blocks, static_cast<unsigned>(tiles < 65535 ? tiles : 65535)), kThreads,
           stream, run);
}

}  // namespace silvertriton::cuda
