// A phase of the wide search: the chunks of clusters that were wanted, each read once for all requests that want it. A
// warp takes chunks one after the other, waiting for no other warp.

#include "scan.h"
#include "search_kernels.h"
#include "tile.h"

namespace silvertriton::cuda {
namespace {

// Requests that share a reading of rows: one a lane.
constexpr int kColumns = 32;

// What is the same for all rows of a chunk, by column.
struct Columns {
    const uint32_t* rows[kColumns];  // words of rows that may be returned, but for `excluded`
    const int32_t* codes[kColumns];  // of the query
    float floor[kColumns];           // what a score has to reach
    int32_t request[kColumns];
    int32_t place[kColumns];     // of the cluster
    int32_t sparse[kColumns];    // rows at most of a block that are scored from vectors; 32: all fit, unscored
    int32_t excluded[kColumns];  // rows that are still to be taken out of the words
};
constexpr int32_t kAllFit = kBlockRows;

__device__ void describe(const SearchRun& run, int64_t cluster, int32_t b, int column, Columns& columns) {
    const RequestState state = run.states[b];
    const bool filtered = state.filtered != 0;
    columns.rows[column] = filtered ? run.filter.call.words + b * run.index.filters.blocks : run.index.filters.valid;
    columns.codes[column] = run.query_codes + b * run.query_groups;
    columns.floor[column] = score_of(run.wide.progress[b].floor);
    columns.request[column] = b;
    columns.place[column] = run.wide.places[b * run.index.filters.clusters + cluster];
    const bool all_fit = rows_passing(run, b, state) <= state.candidates;
    columns.sparse[column] = all_fit ? kAllFit : static_cast<int32_t>(sparse_rows(run, state));
    columns.excluded[column] = filtered ? 0 : state.excluded;
}

__device__ bool is_excluded(const SearchRun& run, int64_t b, int32_t count, int32_t row) {
    const int32_t* rows = run.excluded + b * run.filter.excluded_width;
    const int64_t at = lower_bound(rows, 0, count, row);
    return at < count && rows[at] == row;
}

// Appends those of rows 4g .. 4g + 3 whose scores reach the floor, of the requests of a tile: scores[p][r] of row
// 4g + r for column `first` + 2t + p. `passing` [p] are the words of rows of these columns.
__device__ void append_tile(const SearchRun& run, const Columns& columns, int first, int32_t block,
                            const float (&scores)[2][4], const uint32_t (&passing)[2]) {
    constexpr uint32_t kFirstOfGroups = 0x11111111u;
    const int32_t row = block * kBlockRows + 4 * lane_group();
    uint32_t hits[2] = {0, 0};  // a bit a row
    for (int p = 0; p < 2; ++p) {
        const int column = first + 2 * lane_of_group() + p;
        const uint32_t own = passing[p] >> (4 * lane_group());
        const float floor = columns.floor[column];
        for (int r = 0; r < 4; ++r)  // no score that is no number reaches a floor
            hits[p] |= static_cast<uint32_t>((own >> r & 1u) != 0 && scores[p][r] >= floor) << r;
        if (hits[p] == 0 || columns.excluded[column] == 0) continue;
        for (int r = 0; r < 4; ++r)
            if (is_excluded(run, columns.request[column], columns.excluded[column], row + r)) hits[p] &= ~(1u << r);
    }
    if (!__any_sync(kAllLanes, (hits[0] | hits[1]) != 0)) return;
    // The lanes of one t share their columns: the first of them counts for all, both columns at once.
    uint32_t at[2] = {0, 0};  // a byte a row
    int32_t totals[2] = {0, 0};
    for (int p = 0; p < 2; ++p)
        for (int r = 0; r < 4; ++r) {
            const uint32_t having = __ballot_sync(kAllLanes, (hits[p] >> r & 1u) != 0) & kFirstOfGroups
                                                                                             << lane_of_group();
            at[p] |= static_cast<uint32_t>(totals[p] + __popc(having & ((1u << lane_of_thread()) - 1))) << (8 * r);
            totals[p] += __popc(having);
        }
    int32_t bases[2] = {0, 0};
    for (int p = 0; p < 2; ++p) {
        const int column = first + 2 * lane_of_group() + p;
        if (lane_group() == 0 && totals[p] > 0)
            bases[p] = atomicAdd(&run.wide.progress[columns.request[column]].hits, totals[p]);
    }
    for (int p = 0; p < 2; ++p) {
        const int column = first + 2 * lane_of_group() + p;
        const int32_t base = __shfl_sync(kAllLanes, bases[p], lane_of_group());
        for (int r = 0; r < 4; ++r) {
            const int32_t to = base + static_cast<int32_t>(at[p] >> (8 * r) & 0xffu);
            if ((hits[p] >> r & 1u) == 0 || to >= run.room) continue;
            const int64_t b = columns.request[column];
            run.hits[b * run.room + to] = packed_hit(scores[p][r], row + r);
            run.wide.hit_places[b * run.room + to] = columns.place[column];
        }
    }
}

// Blocks at most that a warp scans together, one a lane where their words of rows are looked at.
constexpr int32_t kRunBlocks = 32;

// Of blocks [first, last) those, a bit each, of which more than a few rows pass for the request of a column. The rows
// of the others are scored from their vectors, 16 at a time.
__device__ __attribute__((noinline)) uint32_t scan_sparse(const SearchRun& run, const Columns& columns, int column,
                                                          int32_t first, int32_t last) {
    const int64_t b = columns.request[column], dims = run.index.vectors.dims;
    const int32_t sparse = columns.sparse[column], lane = lane_of_thread();
    const uint32_t present = first + lane < last ? columns.rows[column][first + lane] : 0;
    const bool is_coded = __popc(present) > sparse;
    const uint32_t rows = is_coded ? 0 : present;
    const int32_t own = __popc(rows), end = warp_prefix_sum(own), total = __shfl_sync(kAllLanes, end, 31);
    if (total > 0) ST_REACHED("vectors");
    ST_ROLLED
    for (int32_t base = 0; base < total; base += 16) {
        const int32_t rank = base + lane / 2;
        int from = 0;  // the lane that has the row of this rank
        for (int step = 16; step > 0; step /= 2)
            if (__shfl_sync(kAllLanes, end, from + step - 1) <= rank) from += step;
        uint32_t left = __shfl_sync(kAllLanes, rows, from);
        for (int32_t before = __shfl_sync(kAllLanes, end - own, from); before < rank; ++before) left &= left - 1;
        const int32_t row = (first + from) * kBlockRows + __ffs(static_cast<int>(left)) - 1;
        const bool exists = rank < total, scored = exists && sparse < kAllFit;
        const uint16_t* const vectors[1] = {scored ? run.index.vectors.vectors + row * dims : nullptr};
        const float scale = scored ? run.index.vectors.scales[row] : 0.0f;
        float product[1];
        dot_rows<4>(vectors, run.units + b * dims, dims, product);
        const float score = product[0] * scale;
        bool hit = exists && lane % 2 == 0 && score >= columns.floor[column];
        if (hit && columns.excluded[column] > 0) hit = !is_excluded(run, b, columns.excluded[column], row);
        append_hits(hit, packed_hit(score, row), columns.place[column], run.hits + b * run.room,
                    run.wide.hit_places + b * run.room, run.room, &run.wide.progress[b].hits);
    }
    return __ballot_sync(kAllLanes, is_coded);
}

// Scans blocks [first, last) of a cluster, kRunBlocks at most, for the requests of `count` columns.
__device__ void scan_blocks(const SearchRun& run, int32_t first, int32_t last, int count, const Columns& columns) {
    const auto groups = static_cast<int32_t>(groups_of(run.index.items.dims));
    const int lane = lane_of_thread();
    const unsigned sparse = __ballot_sync(kAllLanes, lane < count && columns.sparse[lane] > 0);
    uint32_t visited = __popc(sparse) == count ? 0 : ~0u >> (kRunBlocks - (last - first));
    for (unsigned left = sparse; left != 0; left &= left - 1)
        visited |= scan_sparse(run, columns, __ffs(static_cast<int>(left)) - 1, first, last);
    // The first block that is still to be visited, -1 where none is left.
    const auto next = [&] { return visited == 0 ? -1 : first + __ffs(static_cast<int>(visited)) - 1; };
    const auto codes_of = [&](int32_t block) {
        return reinterpret_cast<const int32_t*>(run.index.items.codes) +
               static_cast<int64_t>(block) * (groups * kBlockRows);
    };
    const auto scale_of_lane = [&](int32_t block) { return run.index.items.scales[block * kBlockRows + lane]; };
    const auto words_of = [&](int32_t block) { return lane < count && block >= 0 ? columns.rows[lane][block] : 0; };
    // Columns, a bit each, for which rows are scored from codes.
    const auto coded_of = [&](uint32_t rows) {
        return __ballot_sync(kAllLanes, rows != 0 && __popc(rows) > columns.sparse[lane]);
    };
    // What a block needs is asked for while the one before is worked on, its words of rows one earlier still.
    const bool one_slab = groups <= kSlabGroups;
    int32_t block = next();
    visited &= visited - 1;
    uint32_t rows = words_of(block), next_rows = words_of(next());
    float scale = 0.0f;
    int4 held[kHeld];
    if (coded_of(rows) != 0) {
        scale = scale_of_lane(block);
        if (one_slab) load_codes(codes_of(block), groups, 0, held);
    }
    while (block >= 0) {
        const uint32_t coded = coded_of(rows);
        const bool goes_on = coded_of(next_rows) != 0;
        const auto ask_for_next = [&] {
            if (!goes_on) return;
            scale = scale_of_lane(next());
            if (one_slab) load_codes(codes_of(next()), groups, 0, held);
        };

        ST_ROLLED
        for (uint32_t left = coded; left != 0;) {
            const int start = (__ffs(static_cast<int>(left)) - 1) / kTileQueries * kTileQueries;
            left &= ~(0xffu << start);
            ST_REACHED("matrix");
            const int32_t* query = start + lane_group() < count ? columns.codes[start + lane_group()] : nullptr;
            int32_t sums[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            for (int32_t from = 0; from < groups; from += kSlabGroups) {
                if (!one_slab) load_codes(codes_of(block), groups, from, held);
                int32_t factors[kHeld];
                load_query(query, from, factors);
                multiply(held, factors, groups - from, sums);
            }
            float scores[2][4];
            uint32_t passing[2];
            for (int r = 0; r < 4; ++r) {
                const float of_row = __shfl_sync(kAllLanes, scale, 4 * lane_group() + r);
                for (int p = 0; p < 2; ++p) scores[p][r] = static_cast<float>(sums[p][r]) * of_row;
            }
            if (left == 0) ask_for_next();
            for (int p = 0; p < 2; ++p) {
                const int column = start + 2 * lane_of_group() + p;
                const uint32_t word = __shfl_sync(kAllLanes, rows, column);
                passing[p] = (coded >> column & 1u) != 0 ? word : 0;
            }
            append_tile(run, columns, start, block, scores, passing);
        }
        if (coded == 0) ask_for_next();
        block = next();
        visited &= visited - 1;
        rows = next_rows;
        next_rows = words_of(next());
    }
}

}  // namespace
}  // namespace silvertriton::cuda

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads, 2)
    silvertriton_scan(const __grid_constant__ silvertriton::cuda::SearchRun run, int32_t phase) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ Columns of_warps[kWarps];
    Columns& columns = of_warps[warp_of_thread()];
    const WideRun& wide = run.wide;
    // All warps have as many blocks, whichever chunks those belong to. Neighbours are warps of different blocks of the
    // grid, so that few chunks still occupy the whole device.
    const int64_t slots = wide.chunk_counts[phase] * static_cast<int64_t>(kChunkBlocks);
    const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
    const int64_t warp = static_cast<int64_t>(warp_of_thread()) * gridDim.x + blockIdx.x;
    const auto end = static_cast<int32_t>((warp + 1) * slots / warps);
    for (auto slot = static_cast<int32_t>(warp * slots / warps); slot < end;) {
        const Chunk chunk = wide.chunks[phase * wide.chunk_room + slot / kChunkBlocks];
        const BlockRange blocks = blocks_of(run.index.filters, chunk.cluster);
        // The chunks of a cluster follow each other.
        const int32_t before = chunk.number * kChunkBlocks + slot % kChunkBlocks;
        const auto chunks = static_cast<int32_t>((blocks.last - blocks.first + kChunkBlocks - 1) / kChunkBlocks);
        const auto taken =
            static_cast<int32_t>(at_most(at_most(chunks * kChunkBlocks - before, end - slot), kRunBlocks));
        slot += taken;
        const int32_t first = static_cast<int32_t>(blocks.first) + before;
        const auto last = static_cast<int32_t>(at_most(first + taken, blocks.last));
        if (first >= last) continue;
        const int64_t wanted = (phase * run.index.filters.clusters + chunk.cluster) * wide.wanted_words;
        int count = 0;
        for (int32_t word = 0; word <= wide.wanted_words; ++word) {
            const bool is_end = word == wide.wanted_words;
            const uint32_t bits = is_end ? 0 : wide.wanted[wanted + word];
            if (is_end || count + __popc(bits) > kColumns) {
                __syncwarp();
                scan_blocks(run, first, last, count, columns);
                __syncwarp();
                count = 0;
            }
            if ((bits >> lane_of_thread() & 1u) != 0) {
                const int column = count + __popc(bits & ((1u << lane_of_thread()) - 1));
                describe(run, chunk.cluster, 32 * word + lane_of_thread(), column, columns);
            }
            count += __popc(bits);
        }
    }
}

namespace silvertriton::cuda {

void launch_scan(Stream stream, const SearchRun& run, int32_t phase) {
    // As many blocks as are at work at once.
    launch("scan", silvertriton_scan, dim3(static_cast<unsigned>(2 * multiprocessors())), kThreads, stream, run, phase);
}

}  // namespace silvertriton::cuda
