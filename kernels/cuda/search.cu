// The last step of a search: clusters are chosen and scanned in rounds, as kernels/cpu/probe.cpp and rounds.cpp do, and
// the candidates rescored. A block a request.

#include "parts.h"
#include "scan.h"
#include "search.h"
#include "search_kernels.h"

namespace silvertriton::cuda {
namespace {

// Clusters that the first round considers; each later one considers as many as all before it.
constexpr int64_t kFirstRound = 4;
// Clusters that are put in order at first, and times as many when those did not do.
constexpr int64_t kFirstOrdered = 64, kMoreOrdered = 4;
// Blocks at most that a warp looks at between two barriers.
constexpr int64_t kWarpBlocks = 32;
// Hits at most of such a step.
constexpr int64_t kStepHits = kWarps * kWarpBlocks * kBlockRows;

// Hits beyond twice the candidates that wait for the next cut, which raises the floor.
constexpr int64_t kSlack = 512;

struct SearchShared {
    SelectShared select;
    uint64_t sorted[kSharedSort];
    int32_t hits;
    int32_t stop;
};

// One request. All members are the same for all threads.
class Search {
  public:
    __device__ Search(const SearchRun& run, int64_t b, SearchShared& shared)
        : run_(run),
          index_(run.index),
          b_(b),
          state_(run.states[b]),
          clusters_(run.index.filters.clusters),
          order_(run.order + b * run.order_room),
          taken_clusters_(run.taken + b * clusters_),
          taken_blocks_(run.taken_blocks + b * (clusters_ + 1)),
          hits_(run.hits + b * run.room),
          shared_(shared) {}

    __device__ void run() {
        if (thread_of_block() == 0) {
            shared_.hits = 0;
            taken_blocks_[0] = 0;
        }
        __syncthreads();
        total_ = rows_passing(run_, b_, state_);
        const bool exact = is_exact(run_, state_, total_);
        bool exhausted = total_ <= 0;
        if (exact && !exhausted) {
            take_all();
            scan(0);
            exhausted = true;
        }
        while (!exhausted && !enough()) {
            const int64_t scanned = taken_;
            while (!exhausted && taken_ == scanned && !enough()) exhausted = take_clusters();
            if (taken_ > scanned) scan(scanned);
        }
        finish();
    }

  private:
    __device__ bool enough() const {
        return state_.probes > 0 && taken_ >= state_.probes && covered_ >= state_.candidates;
    }

    // Puts at least `wanted` of the best clusters in order, if there are so many whose bound is a number.
    __device__ void order_clusters(int64_t wanted) {
        while (ordered_ < wanted) ordered_ = at_least(kFirstOrdered, kMoreOrdered * ordered_);
        const uint32_t* bounds = run_.bounds + b_ * clusters_;
        int32_t numbers = 0, of_worst = 0;
        for (int64_t c = thread_of_block(); c < clusters_; c += kThreads) numbers += bounds[c] != 0;
        numbers = block_sum(numbers, shared_.select.sums);
        listed_ = at_most(ordered_, numbers);
        uint32_t worst = 0;
        if (listed_ < numbers) {
            const auto bound = [bounds](int64_t c) { return static_cast<uint64_t>(bounds[c]); };
            const auto all = [](int64_t) { return true; };
            worst = static_cast<uint32_t>(
                select_largest(clusters_, static_cast<int32_t>(listed_), 4, bound, all, shared_.select, &of_worst));
        }
        // Of equal bounds the first clusters.
        int64_t kept = 0, equal = 0;
        for (int64_t base = 0; base < clusters_; base += kThreads) {
            const int64_t c = base + thread_of_block();
            const uint32_t bound = c < clusters_ ? bounds[c] : 0;
            const bool is_worst = bound != 0 && bound == worst;
            int32_t total;
            const int32_t before =
                block_prefix_sum(static_cast<int32_t>(bound > worst) | is_worst << 16, shared_.select.sums, &total);
            const int64_t equal_before = equal + (before >> 16);
            const int64_t to = kept + (before & 0xffff) + at_most(equal_before, of_worst) - at_most(equal, of_worst);
            if (bound > worst || (is_worst && equal_before < of_worst))
                order_[to] = static_cast<uint64_t>(bound) << 32 | (0xffffffffu - static_cast<uint32_t>(c));
            kept += (total & 0xffff) + at_most(equal + (total >> 16), of_worst) - at_most(equal, of_worst);
            equal += total >> 16;
        }
        sort_hits(order_, listed_, shared_.sorted, [](uint64_t x, uint64_t y) { return x > y; });
    }

    // Appends those of a tile of clusters that are wanted and hold passing rows.
    __device__ void take_tile(bool wanted, int64_t cluster, int32_t passing) {
        const bool takes = wanted && passing > 0;
        int32_t taken, covered, blocks;
        const int32_t before = block_prefix_sum(takes, shared_.select.sums, &taken);
        block_prefix_sum(takes ? passing : 0, shared_.select.sums, &covered);
        const BlockRange range = takes ? blocks_of(index_.filters, cluster) : BlockRange{0, 0};
        const int32_t own = static_cast<int32_t>(range.last - range.first);
        const int32_t blocks_before = block_prefix_sum(own, shared_.select.sums, &blocks);
        if (takes) {
            taken_clusters_[taken_ + before] = static_cast<int32_t>(cluster);
            taken_blocks_[taken_ + before + 1] = static_cast<int32_t>(blocks_ + blocks_before + own);
        }
        taken_ += taken;
        covered_ += covered;
        blocks_ += blocks;
        __syncthreads();
    }

    // All clusters with a passing row.
    __device__ void take_all() {
        for (int64_t base = 0; base < clusters_; base += kThreads) {
            const int64_t c = base + thread_of_block();
            take_tile(c < clusters_, c, c < clusters_ ? cluster_passing(run_, b_, state_, c) : 0);
        }
    }

    // Considers the clusters of the next round. True where no other is left.
    __device__ bool take_clusters() {
        const uint32_t floor = state_.probes > 0 ? kMinusInfinityKey : floor_;
        const int64_t end = at_least(at_least(kFirstRound, 2 * considered_), state_.probes);
        if (end > ordered_) order_clusters(end);
        while (considered_ < end) {
            // A tile of clusters in order: those before the first that falls short, and before there are enough.
            const int64_t at = considered_ + thread_of_block(), last = at_most(considered_ + kThreads, end);
            const bool exists = at < last && at < listed_;
            const uint64_t entry = exists ? order_[at] : 0;
            const bool reaches = exists && key_of(entry) >= floor;
            const int64_t cluster = exists ? row_of(entry) : 0;
            const int32_t passing = reaches ? cluster_passing(run_, b_, state_, cluster) : 0;
            int32_t reaching, total;
            // Clusters come in order, so that those that reach the floor come first.
            block_prefix_sum(reaches, shared_.select.sums, &reaching);
            const int32_t taken_before = block_prefix_sum(passing > 0, shared_.select.sums, &total);
            const int32_t covered_before = block_prefix_sum(passing, shared_.select.sums, &total);
            const bool before_enough = !(state_.probes > 0 && taken_ + taken_before >= state_.probes &&
                                         covered_ + covered_before >= state_.candidates);
            const bool considers = reaches && before_enough;
            const int32_t count = block_sum(considers, shared_.select.sums);
            take_tile(considers, cluster, passing);
            considered_ += count;
            if (enough()) return false;
            if (count == reaching && considered_ < last) return true;
        }
        return false;
    }

    // Scans the clusters taken from `first` on; afterwards the floor is the worst candidate's.
    __device__ void scan(int64_t first) {
        if (state_.candidates == 0) return;
        const int64_t start = taken_blocks_[first], blocks = blocks_ - start;
        const int64_t of_warp = at_most(at_least((blocks + kWarps - 1) / kWarps, 1), kWarpBlocks);
        for (int64_t base = 0; base < blocks; base += kWarps * of_warp) {
            const int64_t hits = shared_.hits;
            if (hits + kStepHits > run_.room || hits >= 2 * static_cast<int64_t>(state_.candidates) + kSlack) cut();
            __syncthreads();
            const int64_t of_lane = base + warp_of_thread() * of_warp + lane_of_thread();
            const bool exists = lane_of_thread() < of_warp && of_lane < blocks;
            int64_t block = 0;
            if (exists) {
                const int64_t taken = lower_bound(taken_blocks_, first, taken_ + 1, start + of_lane + 1) - 1;
                block =
                    blocks_of(index_.filters, taken_clusters_[taken]).first + start + of_lane - taken_blocks_[taken];
            }
            const uint32_t rows = exists ? rows_present(run_, b_, state_, block) : 0;
            for (unsigned some = __ballot_sync(kAllLanes, rows != 0); some != 0; some &= some - 1) {
                const int lane = __ffs(static_cast<int>(some)) - 1;
                scan_block(__shfl_sync(kAllLanes, block, lane), __shfl_sync(kAllLanes, rows, lane));
            }
            __syncthreads();
        }
        cut();
    }

    __device__ void scan_block(int64_t block, uint32_t rows) {
        float score = 0.0f;
        if (total_ > state_.candidates)
            score = __popc(rows) <= sparse_rows(run_, state_) ? score_vectors(run_, b_, block, rows)
                                                              : score_codes(run_, b_, block);
        const bool hit = (rows >> lane_of_thread() & 1u) != 0 && score == score && sortable(score) >= floor_;
        const auto row = static_cast<int32_t>(block * kBlockRows + lane_of_thread());
        append_hits(hit, packed_hit(score, row), hits_, run_.room, &shared_.hits);
    }

    // Keeps the best hits only.
    __device__ void cut() {
        __syncthreads();
        const int32_t count = shared_.hits;
        if (count >= state_.candidates) {
            floor_ = keep_best(hits_, count, state_.candidates, index_.ids, shared_.select);
            if (thread_of_block() == 0) shared_.hits = state_.candidates;
        }
        __syncthreads();
    }

    // The candidates' scores from their fp16 rows, best first, and what else is answered.
    __device__ void finish() {
        const int64_t count = shared_.hits, dims = index_.vectors.dims;
        constexpr int64_t kTogether = kThreads / 2;
        for (int64_t base = 0; base < count; base += kTogether) {
            const int64_t i = base + thread_of_block() / 2;
            const bool exists = i < count;
            const int64_t row = exists ? row_of(hits_[i]) : 0;
            const float product =
                dot_row(index_.vectors.vectors + row * dims, run_.requests.query + b_ * dims, exists ? dims : 0);
            if (exists && thread_of_block() % 2 == 0)
                hits_[i] = packed_hit(product * index_.vectors.scales[row], static_cast<int32_t>(row));
        }
        const int64_t* ids = index_.ids;
        sort_hits(hits_, count, shared_.sorted, [ids](uint64_t x, uint64_t y) { return better(x, y, ids); });
        const SearchResults& results = run_.results;
        for (int64_t i = thread_of_block(); i < results.width; i += kThreads) {
            const bool exists = i < count;
            const int32_t row = exists ? row_of(hits_[i]) : -1;
            results.rows[b_ * results.width + i] = row;
            results.ids[b_ * results.width + i] = exists ? ids[row] : -1;
            results.scores[b_ * results.width + i] = score_of(exists ? key_of(hits_[i]) : kMinusInfinityKey);
        }
        if (thread_of_block() != 0) return;
        int32_t* stats = results.stats + 4 * b_;
        stats[0] = static_cast<int32_t>(taken_);
        stats[1] = static_cast<int32_t>(total_);
        stats[2] = static_cast<int32_t>(covered_);
        stats[3] = covered_ == total_;
    }

    const SearchRun& run_;
    const SearchIndex& index_;
    const int64_t b_;
    const RequestState state_;
    const int64_t clusters_;
    uint64_t* const order_;
    int32_t* const taken_clusters_;
    int32_t* const taken_blocks_;
    uint64_t* const hits_;
    SearchShared& shared_;
    uint32_t floor_ = kMinusInfinityKey;
    int64_t total_ = 0;                             // rows that pass
    int64_t ordered_ = 0;                           // clusters asked for in order
    int64_t listed_ = 0;                            // so many are
    int64_t considered_ = 0;                        // clusters that were taken or have no row that passes
    int64_t taken_ = 0, covered_ = 0, blocks_ = 0;  // clusters taken, passing rows and blocks in them
};

}  // namespace
}  // namespace silvertriton::cuda

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_search(silvertriton::cuda::SearchRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ SearchShared shared;
    for (int64_t b = blockIdx.x; b < run.requests.batch; b += gridDim.x) {
        if (run.results.status[b] == kStatusOk) {
            Search(run, b, shared).run();
        } else {
            const int64_t width = run.results.width;
            for (int64_t i = thread_of_block(); i < width; i += kThreads) {
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
    run.hits = parts.take<uint64_t>(batch * run.room);
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
    Parts parts(work.scratch);
    const SearchRun run = plan_search(parts, requests, index, limits, results);
    const auto stream = static_cast<Stream>(work.stream);
    launch_prepare(stream, run);
    if (requests.program_width > 2) launch_filter(stream, run.filter);
    launch_bounds(stream, run);
    launch("search", silvertriton_search, dim3(static_cast<unsigned>(requests.batch)), kThreads, 0, stream, run);
}

}  // namespace silvertriton::cuda
