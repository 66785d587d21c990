// search: from query vectors to rescored candidates, in three steps of which each is spread over the threads.
//   1. look at the requests, run their filters     (resolve.h, filter_rows.cpp)
//   2. choose clusters, and scan them, in rounds   (rounds.h, probe.h, scan.h)
//   3. rescore the candidates from fp16 rows       (finish)

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "prefetch.h"
#include "probe.h"
#include "resolve.h"
#include "rounds.h"
#include "rows.h"
#include "silvertriton/instruction_set.h"
#include "sort_hits.h"

namespace silvertriton::cpu {
namespace {

// Masks that are alive at once: about what stays in the second-level cache from filtering to scanning. A batch whose
// different filters take more is searched in parts.
constexpr int64_t kMaskBytes = int64_t{1} << 20;

std::vector<uint32_t> all_clusters(const SearchIndex& index) {
    std::vector<uint32_t> masks(static_cast<size_t>(index.centroids.blocks), ~0u);
    if (const int64_t last = index.filters.clusters % kBlockRows) masks.back() = (1u << last) - 1;
    return masks;
}

// The candidates' scores from their fp16 rows, best first.
void finish(const InstructionSet& isa, const SearchIndex& index, const float* query, Request& request, int64_t width,
            int32_t* rows, int64_t* ids, float* scores) {
    TopCandidates& best = request.scan.best;
    best.cut();
    const int64_t dims = index.vectors.dims;
    request.padded.assign(static_cast<size_t>((dims + 15) / 16 * 16), 0.0f);
    std::copy_n(query, dims, request.padded.data());
    std::vector<uint64_t>& order = request.order;
    order.resize(static_cast<size_t>(best.count()));
    const uint64_t* hits = best.hits();
    for_each_row(
        index.vectors, best.count(), [hits](int64_t i) { return row_of(hits[i]); },
        [&](int64_t i, int64_t row) {
            ask(index.filters.item_ids.ids + row);  // for the answer
            const float score = isa.dot_row(index.vectors.vectors + row * dims, request.padded.data(), dims) *
                                index.vectors.scales[row];
            order[static_cast<size_t>(i)] = packed_hit(score, static_cast<int32_t>(row));
        });
    sort_hits(order, request.spare, [&](uint64_t a, uint64_t b) { return better(a, b, index.filters.item_ids.ids); });
    const int64_t count = best.count();
    for (int64_t i = 0; i < count; ++i) {
        rows[i] = row_of(order[static_cast<size_t>(i)]);
        ids[i] = index.filters.item_ids.ids[rows[i]];
        scores[i] = score_of(key_of(order[static_cast<size_t>(i)]));
    }
    std::fill(rows + count, rows + width, -1);
    std::fill(ids + count, ids + width, -1);
    std::fill(scores + count, scores + width, -std::numeric_limits<float>::infinity());
}

// Starts to probe. Returns whether there is anything to search.
bool start(const SearchIndex& index, const SearchLimits& limits, Request& request) {
    const bool ok = request.status == kStatusOk;
    request.scan.best.reset(ok ? request.candidates : 0, index.filters.item_ids.ids);
    if (ok) start_probing(index, limits, request);
    return ok;
}

// The answer of request b, once it has been searched.
void answer(const InstructionSet& isa, const SearchRequests& requests, int64_t b, const SearchIndex& index,
            Request& request, const SearchResults& results) {
    const int64_t at = b * results.width;
    finish(isa, index, requests.query + b * index.vectors.dims, request, results.width, results.rows + at,
           results.ids + at, results.scores + at);
    const bool ok = request.status == kStatusOk;
    const int64_t stats[4] = {static_cast<int64_t>(request.taken.size()), request.total, request.covered,
                              request.covered == request.total};
    for (int s = 0; s < 4; ++s) results.stats[4 * b + s] = ok ? static_cast<int32_t>(stats[s]) : 0;
    results.status[b] = request.status;
}

// Bounds of as many groups of consecutive requests as there are threads, with about as much to do in each. The larger
// the groups, the more requests share the reading of a cluster.
std::vector<int64_t> share_out(const std::vector<Request*>& batch, int64_t threads) {
    int64_t work = 0, before = 0;
    for (const Request* request : batch) work += clusters_expected(*request);
    std::vector<int64_t> bounds{0};
    for (size_t i = 0; i < batch.size(); ++i) {
        const int64_t own = clusters_expected(*batch[i]);
        while (static_cast<int64_t>(bounds.size()) < threads &&
               (2 * before + own) * threads >= 2 * work * static_cast<int64_t>(bounds.size()))
            bounds.push_back(static_cast<int64_t>(i));
        before += own;
    }
    bounds.resize(static_cast<size_t>(threads) + 1, static_cast<int64_t>(batch.size()));
    return bounds;
}

// Searches requests [first, first + batch.size()).
void search_part(const SearchRequests& requests, int64_t first, const SearchIndex& index, const SearchLimits& limits,
                 const SearchResults& results, const uint32_t* all, SharedFilters& filters,
                 const std::vector<Request*>& batch) {
    const InstructionSet& isa = instruction_set();
    const int64_t count = static_cast<int64_t>(batch.size()), threads = thread_count();
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) resolve(requests, first + i, index, limits, *batch[i]);
    });
    run_filters(requests, index, filters, batch);
    if (count < threads) {
        for (int64_t i = 0; i < count; ++i) {
            Request& request = *batch[static_cast<size_t>(i)];
            if (start(index, limits, request)) search_alone(isa, index, all, threads, request);
            answer(isa, requests, first + i, index, request, results);
        }
        return;
    }
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Request& request = *batch[static_cast<size_t>(i)];
            if (start(index, limits, request)) search_first_round(isa, index, all, request);
        }
    });
    const std::vector<int64_t> bounds = share_out(batch, threads);
    parallel_for(threads, 1, [&](int64_t thread, int64_t last) {
        thread_local std::vector<Request*> group;
        for (; thread < last; ++thread) {
            const int64_t begin = bounds[static_cast<size_t>(thread)], end = bounds[static_cast<size_t>(thread) + 1];
            group.assign(batch.begin() + begin, batch.begin() + end);
            const auto ended = [](const Request* request) { return request->status != kStatusOk; };
            group.erase(std::remove_if(group.begin(), group.end(), ended), group.end());
            search_group(isa, index, all, group);
            for (int64_t i = begin; i < end; ++i)
                answer(isa, requests, first + i, index, *batch[static_cast<size_t>(i)], results);
        }
    });
}

}  // namespace

int64_t search_width(const SearchRequests& requests, const SearchLimits& limits) {
    int64_t most = 0;
    for (int64_t b = 0; b < requests.batch; ++b) {
        const int64_t asked = requests.limits[2 * b + 1], wanted = asked == 0 ? limits.candidates : asked;
        if (wanted <= limits.max_candidates) most = std::max(most, wanted);
    }
    return most;
}

void search(const SearchRequests& requests, const SearchIndex& index, const SearchLimits& limits,
            const SearchResults& results) {
    // Kept from call to call: memory fresh from the system costs more than a small search.
    thread_local std::vector<Request> pool;
    thread_local SharedFilters filters;
    const std::vector<uint32_t> clusters = all_clusters(index);
    const int64_t mask_bytes = std::max<int64_t>(index.items.blocks * 4, 1);
    const int64_t most = std::max(kMaskBytes / mask_bytes, thread_count());
    for (int64_t first = 0; first < requests.batch;) {
        const auto count = static_cast<size_t>(filters.take(requests, first, most));
        if (pool.size() < count) pool.resize(count);
        std::vector<Request*> batch;
        for (size_t i = 0; i < count; ++i) batch.push_back(&pool[i]);
        search_part(requests, first, index, limits, results, clusters.data(), filters, batch);
        first += static_cast<int64_t>(count);
    }
}

}  // namespace silvertriton::cpu
