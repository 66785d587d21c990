// Which clusters a request scans, a round at a time.

#include "probe.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "scan.h"
#include "silvertriton/probing.h"
#include "sort_hits.h"

namespace silvertriton::cpu {
namespace {

// Passing rows of a cluster, counted when it is looked at: most clusters of most requests never are. Without a filter
// only a cluster's last block has rows that are none.
int64_t passing_rows(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster) {
    const int64_t first = index.filters.cluster_blocks[cluster], last = index.filters.cluster_blocks[cluster + 1];
    if (first == last) return 0;
    const auto c = static_cast<size_t>(cluster);
    if (request.list != nullptr) return request.list->first_of[c + 1] - request.list->first_of[c];
    const auto& excluded = request.excluded;
    const auto begin = std::lower_bound(excluded.begin(), excluded.end(), first * kBlockRows);
    const auto end = std::lower_bound(begin, excluded.end(), last * kBlockRows);
    if (request.words == nullptr)
        return (last - first - 1) * kBlockRows + count_bits(index.filters.valid[last - 1]) - (end - begin);
    const auto passes = [&](int32_t row) { return has_row(request.words, row); };
    return isa.count_words(request.words + first, last - first) - std::count_if(begin, end, passes);
}

// The rows of the mask as a list.
void list_mask(const FilterIndex& index, Request& request) {
    std::vector<int32_t>& rows = request.own_list.rows;
    rows.clear();
    auto excluded = request.excluded.begin();
    for (int64_t b = 0; b < index.blocks; ++b)
        for (uint32_t bits = request.words[b]; bits != 0; bits &= bits - 1) {
            const auto row = static_cast<int32_t>(b * kBlockRows + __builtin_ctz(bits));
            while (excluded != request.excluded.end() && *excluded < row) ++excluded;
            if (excluded == request.excluded.end() || *excluded != row) rows.push_back(row);
        }
    request.own_list.find_clusters(index);
    request.list = &request.own_list;
}

// All clusters with a passing row.
void take_all(const InstructionSet& isa, const SearchIndex& index, Request& request) {
    request.covered = request.total;
    for (int64_t c = 0; c < index.filters.clusters; ++c)
        if (passing_rows(isa, index, request, c) > 0) request.taken.push_back(static_cast<int32_t>(c));
}

// The best clusters in order, at least `wanted` of them if so many reach the floor. The order is total and the floor
// only rises, so what was considered before comes first again.
void order_clusters(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, int64_t wanted,
                    float floor, Request& request) {
    while (request.ordered < wanted) request.ordered = std::max(kFirstOrdered, kMoreOrdered * request.ordered);
    thread_local TopCandidates best;
    best.reset(request.ordered, nullptr, floor);
    scan_run(isa, index.centroids, request.spreads, all, 0, index.centroids.blocks, request.query.codes(), {}, best);
    best.cut();
    request.best_clusters.assign(best.hits(), best.hits() + best.count());
    sort_hits(request.best_clusters, request.spare, std::greater<>());
}

}  // namespace

void start_probing(const SearchIndex& index, const SearchLimits& limits, Request& request) {
    request.exact = request.total <= std::max(limits.exact_rows, request.candidates);
    request.exhausted = request.total == 0;
    request.probes = std::min(request.probes, index.filters.clusters);
    if (request.exhausted) return;
    if (request.exact && request.words != nullptr) list_mask(index.filters, request);
    request.spreads = {index.centroid_spreads, reach_at(index, request.total) * request.query.length()};
}

bool take_clusters(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, Request& request) {
    request.scanned = static_cast<int64_t>(request.taken.size());
    const auto enough = [&] {
        return request.probes > 0 && static_cast<int64_t>(request.taken.size()) >= request.probes &&
               request.covered >= request.candidates;
    };
    if (request.exact && !request.exhausted) {
        take_all(isa, index, request);
        request.exhausted = true;
    }
    const float floor = request.probes > 0 ? -std::numeric_limits<float>::infinity() : request.scan.best.floor();
    while (!request.exhausted && static_cast<int64_t>(request.taken.size()) == request.scanned && !enough()) {
        const int64_t end = std::max({kFirstRound, 2 * request.considered, request.probes});
        if (end > request.ordered) order_clusters(isa, index, all, end, floor, request);
        for (int64_t& at = request.considered; at < end && !enough(); ++at) {
            const auto found = static_cast<size_t>(at);
            if (found >= request.best_clusters.size() || score_of(key_of(request.best_clusters[found])) < floor) {
                request.exhausted = true;
                break;
            }
            const int32_t cluster = row_of(request.best_clusters[found]);
            const int64_t passing = passing_rows(isa, index, request, cluster);
            if (passing == 0) continue;
            request.taken.push_back(cluster);
            request.covered += passing;
        }
    }
    const auto after = static_cast<size_t>(request.considered);
    const bool more = !request.exhausted && after < request.best_clusters.size();
    request.upcoming = more ? row_of(request.best_clusters[after]) : -1;
    return static_cast<int64_t>(request.taken.size()) > request.scanned;
}

int64_t clusters_expected(const Request& request) {
    if (request.exhausted || request.status != kStatusOk) return 1;
    if (request.probes > 0) return request.probes;
    const float floor = request.scan.best.floor();
    const auto reaches = [&](uint64_t hit) { return score_of(key_of(hit)) >= floor; };
    return 1 + std::count_if(request.best_clusters.begin(), request.best_clusters.end(), reaches);
}

}  // namespace silvertriton::cpu
