// search: from query vectors to rescored candidates, in three steps of which each is spread over the threads.
//   1. look at the requests, run their filters     (resolve, filter_rows)
//   2. choose clusters, and scan them, in rounds   (probe.h, scan.h)
//   3. rescore the candidates from fp16 rows       (finish)

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "probe.h"
#include "rows.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/program.h"
#include "sort_hits.h"

namespace silvertriton::cpu {
namespace {

// Masks of filtered requests that are alive at once: about what stays in the second-level cache from filtering to
// scanning. A batch whose masks take more is searched in parts.
constexpr int64_t kMaskBytes = int64_t{1} << 20;

// Groups of requests that each thread gets of a batch, about.
constexpr int64_t kGroupsOfThread = 4;

// Blocks of a lone request for which another thread is woken, which takes some microseconds.
constexpr int64_t kBlocksOfThread = 256;

bool finite(const float* query, int64_t dims) {
    bool all = true;
    for (int64_t i = 0; i < dims; ++i) all &= std::fabs(query[i]) <= std::numeric_limits<float>::max();
    return all;
}

// The row of an item id, or -1. `item_rows` are the rows by ascending id; they are checked, since ids are read there.
int32_t row_of_id(const SearchIndex& index, int64_t id) {
    int64_t first = 0, last = index.item_count;
    while (first < last) {
        const int64_t middle = first + (last - first) / 2;
        const int32_t row = index.item_rows[middle];
        if (row < 0 || row >= index.vectors.rows) return -1;
        if (index.ids[row] == id) return row;
        if (index.ids[row] < id) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return -1;
}

int64_t blocks_of(const SearchIndex& index, int32_t cluster) {
    return index.filters.cluster_blocks[cluster + 1] - index.filters.cluster_blocks[cluster];
}

// Status, limits and query of one request. Nothing of a request that is not well is searched.
void resolve(const SearchRequests& requests, int64_t b, const SearchIndex& index, const SearchLimits& limits,
             Request& request) {
    const int64_t dims = index.vectors.dims;
    const float* query = requests.query + b * dims;
    const int64_t* exclude = requests.exclude + b * requests.exclude_width;
    const int64_t* program = requests.program + b * requests.program_width;
    const int64_t probes = requests.limits[2 * b], candidates = requests.limits[2 * b + 1];
    request.clear();
    int32_t status = requests.status[b];
    if (!finite(query, dims)) status = first_status(status, kStatusQuery);
    for (int64_t e = 0; e < requests.exclude_width; ++e)
        if (exclude[e] < -1) status = first_status(status, kStatusExclude);
    if (probes < 0 || probes > index.filters.clusters || candidates < 0 || candidates > limits.max_candidates)
        status = first_status(status, kStatusSearch);
    request.filtered = program[1] != 0;
    if (status != kStatusOk && request.filtered) {  // nobody else looks at this program
        const ProgramShape shape = check_program(program, requests.program_width, requests.fingerprint,
                                                 index.filters.feature_number, index.filters.features);
        status = first_status(status, shape.status);
    }
    request.status = status;
    if (status != kStatusOk) return;

    request.probes = probes == 0 ? limits.probes : probes;
    request.candidates = candidates == 0 ? limits.candidates : candidates;
    request.query.prepare(query, dims, index.projection, index.items.dims);
    for (int64_t e = 0; e < requests.exclude_width; ++e) {
        const int32_t row = exclude[e] < 0 ? -1 : row_of_id(index, exclude[e]);
        if (row >= 0) request.excluded.push_back(row);
    }
    std::sort(request.excluded.begin(), request.excluded.end());
    request.excluded.erase(std::unique(request.excluded.begin(), request.excluded.end()), request.excluded.end());
}

// Takes excluded rows out of what passes the filter.
void exclude_rows(Request& request) {
    const auto& excluded = request.excluded;
    if (excluded.empty()) return;
    if (request.listed) {
        const auto gone = [&](int32_t row) { return std::binary_search(excluded.begin(), excluded.end(), row); };
        request.rows.erase(std::remove_if(request.rows.begin(), request.rows.end(), gone), request.rows.end());
        request.total = static_cast<int64_t>(request.rows.size());
        return;
    }
    for (const int32_t row : excluded) {
        uint32_t& word = request.words.data()[row / kBlockRows];
        const uint32_t bit = 1u << (row % kBlockRows);
        if (word & bit) request.total -= 1;
        word &= ~bit;
    }
}

void run_filters(const SearchRequests& requests, int64_t first, const SearchIndex& index,
                 std::vector<Request*>& batch) {
    std::vector<FilterRequest> filters;
    std::vector<Request*> filtered;
    for (size_t i = 0; i < batch.size(); ++i) {
        Request& request = *batch[i];
        if (request.status != kStatusOk || !request.filtered) continue;
        const int64_t* program = requests.program + (first + static_cast<int64_t>(i)) * requests.program_width;
        filters.push_back({program, request.words.reserve(index.items.blocks), &request.rows, false, 0, kStatusOk});
        filtered.push_back(&request);
    }
    if (filters.empty()) return;
    filter_rows(filters.data(), static_cast<int64_t>(filters.size()), requests.program_width, requests.fingerprint,
                index.filters);
    for (size_t i = 0; i < filters.size(); ++i) {
        Request& request = *filtered[i];
        request.status = filters[i].status;
        request.listed = filters[i].listed;
        request.total = filters[i].passing;
        exclude_rows(request);
    }
}

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
            __builtin_prefetch(index.ids + row);  // for the answer
            const float score = isa.dot_row(index.vectors.vectors + row * dims, request.padded.data(), dims) *
                                index.vectors.scales[row];
            order[static_cast<size_t>(i)] = packed_hit(score, static_cast<int32_t>(row));
        });
    sort_hits(order, request.spare, [&](uint64_t a, uint64_t b) { return better(a, b, index.ids); });
    const int64_t count = best.count();
    for (int64_t i = 0; i < count; ++i) {
        rows[i] = row_of(order[static_cast<size_t>(i)]);
        ids[i] = index.ids[rows[i]];
        scores[i] = score_of(key_of(order[static_cast<size_t>(i)]));
    }
    std::fill(rows + count, rows + width, -1);
    std::fill(ids + count, ids + width, -1);
    std::fill(scores + count, scores + width, -std::numeric_limits<float>::infinity());
}

// Scans the clusters that a group of requests has taken in this round. What several of them want is read once.
void scan_shared(const InstructionSet& isa, const SearchIndex& index, const std::vector<Request*>& group) {
    thread_local std::vector<uint64_t> shared;  // cluster in the high half, request in the low one
    shared.clear();
    for (size_t r = 0; r < group.size(); ++r)
        for (auto i = static_cast<size_t>(group[r]->scanned); i < group[r]->taken.size(); ++i)
            shared.push_back(static_cast<uint64_t>(group[r]->taken[i]) << 32 | r);
    std::sort(shared.begin(), shared.end());
    const auto cluster_at = [&](size_t i) { return i < shared.size() ? static_cast<int64_t>(shared[i] >> 32) : -1; };
    for (size_t i = 0, after = 0; i < shared.size(); ++i) {
        Request& request = *group[shared[i] & 0xffffffffu];
        const int64_t cluster = cluster_at(i);
        NextBlocks next{};
        if (i >= after) {  // the first request of this cluster asks for the one after it
            for (after = i + 1; cluster_at(after) == cluster;) ++after;
            next = next_blocks(index, request, cluster_at(after));
        }
        scan_cluster(isa, index, request, cluster, next, request.scan);
    }
}

// One thread's share of a batch, in rounds. In the first each request scans its best clusters, best first, to have a
// floor soon; later ones are shared.
void scan_group(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all,
                std::vector<Request*>& group) {
    for (bool first = true;; first = false) {
        const auto ended = [&](Request* request) { return !take_clusters(isa, index, all, *request); };
        group.erase(std::remove_if(group.begin(), group.end(), ended), group.end());
        if (group.empty()) return;
        if (first || group.size() == 1) {
            for (Request* request : group)
                scan_clusters(isa, index, *request, request->scanned, request->taken.size(), request->scan);
        } else {
            scan_shared(isa, index, group);
        }
        for (Request* request : group) {
            finish_scan(isa, index, *request, request->scan);
            request->scan.best.cut();
        }
    }
}

// A request of its own: the clusters of a round are dealt out to the threads, each with candidates of its own.
void scan_in_parts(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, int64_t threads,
                   Request& request) {
    while (take_clusters(isa, index, all, request)) {
        const int64_t first = request.scanned, count = static_cast<int64_t>(request.taken.size()) - first;
        int64_t blocks = 0;
        for (int64_t i = first; i < first + count; ++i) blocks += blocks_of(index, request.taken[i]);
        const int64_t parts = std::min({threads, count, blocks / kBlocksOfThread});
        if (parts <= 1) {
            scan_clusters(isa, index, request, first, first + count, request.scan);
            finish_scan(isa, index, request, request.scan);
            request.scan.best.cut();
            continue;
        }
        std::vector<Scan> scans(static_cast<size_t>(parts));
        parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) {
                Scan& scan = scans[static_cast<size_t>(part)];
                scan.best.reset(request.candidates, index.ids, request.scan.best.floor());
                scan_clusters(isa, index, request, first + count * part / parts, first + count * (part + 1) / parts,
                              scan);
                finish_scan(isa, index, request, scan);
            }
        });
        for (const Scan& scan : scans) request.scan.best.merge(scan.best);
        request.scan.best.cut();
    }
}

// Searches requests [first, first + batch.size()).
void search_part(const SearchRequests& requests, int64_t first, const SearchIndex& index, const SearchLimits& limits,
                 const SearchResults& results, const uint32_t* all, std::vector<Request*>& batch) {
    const InstructionSet& isa = instruction_set();
    const int64_t count = static_cast<int64_t>(batch.size()), threads = thread_count();
    const auto each = [&](const std::function<void(int64_t)>& body) {
        parallel_for(count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) body(i);
        });
    };
    each([&](int64_t i) { resolve(requests, first + i, index, limits, *batch[i]); });
    run_filters(requests, first, index, batch);
    const auto answer = [&](int64_t i) {
        const int64_t b = first + i, width = results.width;
        const Request& request = *batch[static_cast<size_t>(i)];
        const bool ok = request.status == kStatusOk;
        finish(isa, index, requests.query + b * index.vectors.dims, *batch[static_cast<size_t>(i)], width,
               results.rows + b * width, results.ids + b * width, results.scores + b * width);
        const int64_t stats[4] = {static_cast<int64_t>(request.taken.size()), request.total, request.covered,
                                  request.covered == request.total};
        for (int s = 0; s < 4; ++s) results.stats[4 * b + s] = ok ? static_cast<int32_t>(stats[s]) : 0;
        results.status[b] = request.status;
    };
    // Starts to probe, and says whether there is anything to search.
    const auto start = [&](Request& request) {
        const bool ok = request.status == kStatusOk;
        request.scan.best.reset(ok ? request.candidates : 0, index.ids);
        if (ok) start_probing(index, limits, request);
        return ok;
    };
    if (count < threads) {
        for (int64_t i = 0; i < count; ++i) {
            if (start(*batch[static_cast<size_t>(i)]))
                scan_in_parts(isa, index, all, threads, *batch[static_cast<size_t>(i)]);
            answer(i);
        }
        return;
    }
    // Requests take different times: with several groups a thread, no thread waits long for another.
    const int64_t groups = threads == 1 ? 1 : std::min(count, kGroupsOfThread * threads);
    std::atomic<int64_t> next{0};
    parallel_for(threads, 1, [&](int64_t, int64_t) {
        thread_local std::vector<Request*> group;
        for (int64_t g; (g = next++) < groups;) {
            group.clear();
            for (int64_t i = count * g / groups; i < count * (g + 1) / groups; ++i)
                if (start(*batch[static_cast<size_t>(i)])) group.push_back(batch[static_cast<size_t>(i)]);
            scan_group(isa, index, all, group);
            for (int64_t i = count * g / groups; i < count * (g + 1) / groups; ++i) answer(i);
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
    const std::vector<uint32_t> clusters = all_clusters(index);
    bool filtered = false;
    for (int64_t b = 0; b < requests.batch; ++b) filtered |= requests.program[b * requests.program_width + 1] != 0;
    const int64_t mask_bytes = std::max<int64_t>(index.items.blocks * 4, 1);
    const int64_t step =
        filtered ? std::max(kMaskBytes / mask_bytes, thread_count()) : std::max<int64_t>(requests.batch, 1);
    for (int64_t first = 0; first < requests.batch; first += step) {
        const int64_t count = std::min(step, requests.batch - first);
        if (static_cast<int64_t>(pool.size()) < count) pool.resize(static_cast<size_t>(count));
        std::vector<Request*> batch;
        for (int64_t i = 0; i < count; ++i) batch.push_back(&pool[static_cast<size_t>(i)]);
        search_part(requests, first, index, limits, results, clusters.data(), batch);
    }
}

}  // namespace silvertriton::cpu
