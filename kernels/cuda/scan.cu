// A phase of the wide search: the chunks of clusters that were wanted, each read once for all requests that want it. A
// warp a block of rows, eight requests at a time.

#include "scan.h"
#include "search_kernels.h"

namespace silvertriton::cuda {
namespace {

// Requests at a time, and how many have to need a block's codes for tensor cores to take less time.
constexpr int kTogether = 8, kMatrixFrom = 3;
// One word more than rows, so that lanes write to different banks.
constexpr int kSumsStride = kBlockRows + 1;

// Sums of code products of 32 rows and eight queries, by tensor cores: sums[q * kSumsStride + row]. The query of a lane
// is that of column lane / 4, null for none. Codes as they lie are the fragments: a word of four codes of one row.
__device__ void multiply(const int32_t* codes, int64_t groups, const int32_t* query, int32_t* sums) {
    ST_REACHED("matrix");
    const int row = lane_of_thread() / 4, group = lane_of_thread() % 4;
    int32_t products[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    for (int64_t j = group; j < (groups + 7) / 8 * 8; j += 8) {
        const int32_t factors[2] = {query != nullptr ? query[j] : 0, query != nullptr ? query[j + 4] : 0};
        const int32_t* low = codes + j * kBlockRows + row;
        const int32_t* high = low + 4 * kBlockRows;
        const bool has_low = j < groups, has_high = j + 4 < groups;
        for (int half = 0; half < 2; ++half) {
            const int at = 16 * half;
            const int32_t words[4] = {has_low ? low[at] : 0, has_low ? low[at + 8] : 0, has_high ? high[at] : 0,
                                      has_high ? high[at + 8] : 0};
            mma_16x8x32(products[half], words, factors);
        }
    }
    for (int half = 0; half < 2; ++half) {
        int32_t* at = sums + 2 * group * kSumsStride + 16 * half + row;
        at[0] = products[half][0];
        at[kSumsStride] = products[half][1];
        at[8] = products[half][2];
        at[kSumsStride + 8] = products[half][3];
    }
}

// How the rows of a block are scored for a request.
enum Way : int32_t { kNothing, kAllFit, kByVector, kByCode };

// Scans blocks [first, last) of a cluster for up to eight requests: lane q < count has that of column q.
__device__ void scan_chunk(const SearchRun& run, int64_t cluster, int64_t first, int64_t last, int32_t request,
                           int count, int32_t* sums) {
    const int64_t groups = groups_of(run.index.items.dims), clusters = run.index.filters.clusters;
    const bool exists = lane_of_thread() < count;
    const RequestState state = exists ? run.states[request] : RequestState{};
    const bool all_fit = exists && rows_passing(run, request, state) <= state.candidates;
    const int64_t sparse = exists ? sparse_rows(run, state) : 0;
    const uint32_t floor = exists ? run.wide.progress[request].floor : 0;
    const int32_t place = exists ? run.wide.places[request * clusters + cluster] : 0;
    const int32_t of_column = __shfl_sync(kAllLanes, request, lane_of_thread() / 4);
    const int32_t* query = lane_of_thread() / 4 < count ? run.query_codes + of_column * run.query_groups : nullptr;
    for (int64_t block = first + warp_of_thread(); block < last; block += kWarps) {
        const uint32_t rows = exists ? rows_present(run, request, state, block) : 0;
        const Way way = rows == 0 ? kNothing : all_fit ? kAllFit : __popc(rows) <= sparse ? kByVector : kByCode;
        const unsigned by_code = __ballot_sync(kAllLanes, way == kByCode);
        const bool by_matrix = __popc(by_code) >= kMatrixFrom;
        const auto* codes = reinterpret_cast<const int32_t*>(run.index.items.codes) + block * groups * kBlockRows;
        float scale = 0.0f;
        if (by_code != 0) scale = run.index.items.scales[block * kBlockRows + lane_of_thread()];
        if (by_matrix) multiply(codes, groups, query, sums);
        __syncwarp();
        for (unsigned some = __ballot_sync(kAllLanes, rows != 0); some != 0; some &= some - 1) {
            const int q = __ffs(static_cast<int>(some)) - 1;
            const int64_t b = __shfl_sync(kAllLanes, request, q);
            const uint32_t passing = __shfl_sync(kAllLanes, rows, q);
            const auto how = static_cast<int32_t>(__shfl_sync(kAllLanes, static_cast<int32_t>(way), q));
            float score = 0.0f;
            if (how == kByVector) {
                ST_REACHED("vectors");
                score = score_vectors(run, b, block, passing);
            } else if (how == kByCode && by_matrix) {
                score = static_cast<float>(sums[q * kSumsStride + lane_of_thread()]) * scale;
            } else if (how == kByCode) {
                ST_REACHED("codes");
                int32_t sum[1];
                dot_block<1>(codes, groups, run.query_codes + b * run.query_groups, 0, sum);
                score = static_cast<float>(sum[0]) * scale;
            }
            const uint32_t least = __shfl_sync(kAllLanes, floor, q);
            const bool hit = (passing >> lane_of_thread() & 1u) != 0 && score == score && sortable(score) >= least;
            append_hits(hit, packed_hit(score, static_cast<int32_t>(block * kBlockRows + lane_of_thread())),
                        __shfl_sync(kAllLanes, place, q), run.hits + b * run.room, run.wide.hit_places + b * run.room,
                        run.room, &run.wide.progress[b].hits);
        }
        __syncwarp();
    }
}

}  // namespace
}  // namespace silvertriton::cuda

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads, 2)
    silvertriton_scan(silvertriton::cuda::SearchRun run, int32_t phase) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ int32_t sums[kWarps][kTogether * kSumsStride];
    const WideRun& wide = run.wide;
    const int64_t count = wide.chunk_counts[phase];
    for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
        const Chunk chunk = wide.chunks[phase * wide.chunk_room + i];
        const BlockRange blocks = blocks_of(run.index.filters, chunk.cluster);
        const int64_t first = blocks.first + chunk.number * kChunkBlocks;
        const int64_t last = at_most(first + kChunkBlocks, blocks.last);
        const uint32_t* wanted = wide.wanted + (phase * run.index.filters.clusters + chunk.cluster) * wide.wanted_words;
        int32_t request = 0;
        int together = 0;
        for (int64_t word = 0; word < wide.wanted_words; ++word)
            for (uint32_t bits = wanted[word]; bits != 0; bits &= bits - 1) {
                const auto b = static_cast<int32_t>(32 * word + __ffs(static_cast<int>(bits)) - 1);
                if (lane_of_thread() == together) request = b;
                if (++together < kTogether) continue;
                scan_chunk(run, chunk.cluster, first, last, request, together, sums[warp_of_thread()]);
                together = 0;
            }
        if (together > 0) scan_chunk(run, chunk.cluster, first, last, request, together, sums[warp_of_thread()]);
    }
}

namespace silvertriton::cuda {

void launch_scan(Stream stream, const SearchRun& run, int32_t phase) {
    // As many blocks as may be at work at once; each takes chunks until none is left.
    const int64_t blocks = 8 * multiprocessors();
    launch("scan", silvertriton_scan,
           dim3(static_cast<unsigned>(run.wide.chunk_room < blocks ? run.wide.chunk_room : blocks)), kThreads, stream,
           run, phase);
}

}  // namespace silvertriton::cuda
