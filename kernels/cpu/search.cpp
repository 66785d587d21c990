// search: from query vectors to rescored candidates, in four steps of which each is spread over the threads.
//   1. look at the requests, run their filters     (resolve, filter_rows)
//   2. choose clusters                             (choose_clusters)
//   3. scan them                                   (scan.h)
//   4. rescore the candidates from fp16 rows       (finish)

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "rows.h"
#include "scan.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/program.h"

namespace silvertriton::cpu {
namespace {

// Masks of filtered requests that are alive at once: about what stays in the second-level cache from filtering to
// scanning. A batch whose masks take more is searched in parts.
constexpr int64_t kMaskBytes = int64_t{1} << 20;

// Clusters that each request of a batch scans before clusters are shared: the best one gives it a floor.
constexpr int64_t kOwnClusters = 1;

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

int64_t cluster_of(const SearchIndex& index, int32_t row) {
    const int32_t* blocks = index.filters.cluster_blocks;
    return std::upper_bound(blocks, blocks + index.filters.clusters + 1, row / kBlockRows) - blocks - 1;
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

// Passing rows of a cluster, counted when it is looked at: most clusters of most requests never are. Without a filter
// only a cluster's last block has rows that are none.
int64_t passing_rows(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster) {
    const int64_t first = index.filters.cluster_blocks[cluster], last = index.filters.cluster_blocks[cluster + 1];
    if (first == last) return 0;
    const auto c = static_cast<size_t>(cluster);
    if (request.listed) return request.first_of[c + 1] - request.first_of[c];
    if (request.filtered) return isa.count_words(request.words.data() + first, last - first);
    const auto& excluded = request.excluded;
    const auto begin = std::lower_bound(excluded.begin(), excluded.end(), first * kBlockRows);
    const int64_t absent = std::lower_bound(begin, excluded.end(), last * kBlockRows) - begin;
    return (last - first - 1) * kBlockRows + count_bits(index.filters.valid[last - 1]) - absent;
}

// Probes to take when `passing` of `items` rows pass: piecewise linear in items / passing between the powers of 4.
int64_t grown_probes(const SearchIndex& index, int64_t probes, int64_t passing) {
    const float times = static_cast<float>(index.item_count) / static_cast<float>(passing);
    int64_t g = 0;
    float power = 1.0f;
    while (g + 1 < index.growth_count && times >= 4.0f * power) {
        power *= 4.0f;
        g += 1;
    }
    float growth = index.probe_growth[g];
    if (g + 1 < index.growth_count) growth += (index.probe_growth[g + 1] - growth) * ((times - power) / (3.0f * power));
    const float grown = std::ceil(static_cast<float>(probes) * growth);
    return grown < static_cast<float>(index.filters.clusters) ? static_cast<int64_t>(grown) : index.filters.clusters;
}

// The rows of the mask as a list.
void list_mask(int64_t blocks, Request& request) {
    const uint32_t* words = request.words.data();
    request.rows.clear();
    for (int64_t b = 0; b < blocks; ++b)
        for (uint32_t bits = words[b]; bits != 0; bits &= bits - 1)
            request.rows.push_back(static_cast<int32_t>(b * kBlockRows + __builtin_ctz(bits)));
    request.listed = true;
}

// Finds where the listed rows of each cluster begin.
void split_list(const SearchIndex& index, Request& request) {
    const int32_t* blocks = index.filters.cluster_blocks;
    const int32_t* rows = request.rows.data();
    const int32_t count = static_cast<int32_t>(request.rows.size());
    request.first_of.resize(static_cast<size_t>(index.filters.clusters) + 1);
    int32_t row = 0;
    for (int64_t c = 0; c <= index.filters.clusters; ++c) {
        while (row < count && rows[row] < blocks[c] * kBlockRows) ++row;
        request.first_of[static_cast<size_t>(c)] = row;
    }
}

// All clusters with a passing row.
void take_all(const InstructionSet& isa, const SearchIndex& index, Request& request) {
    request.covered = request.total;
    for (int64_t c = 0; c < index.filters.clusters; ++c)
        if (passing_rows(isa, index, request, c) > 0) request.taken.push_back(static_cast<int32_t>(c));
}

std::vector<uint32_t> all_clusters(const SearchIndex& index) {
    std::vector<uint32_t> masks(static_cast<size_t>(index.centroids.blocks), ~0u);
    if (const int64_t last = index.filters.clusters % kBlockRows) masks.back() = (1u << last) - 1;
    return masks;
}

// `all` clusters: a mask over the blocks of centroids.
void choose_clusters(const InstructionSet& isa, const SearchIndex& index, const SearchLimits& limits,
                     const uint32_t* all, Request& request) {
    if (!request.filtered) request.total = index.item_count - static_cast<int64_t>(request.excluded.size());
    const bool exact = request.total <= std::max(limits.exact_rows, request.candidates);
    if (exact && request.filtered && !request.listed) list_mask(index.items.blocks, request);
    if (request.listed) split_list(index, request);
    if (exact) {
        take_all(isa, index, request);
        return;
    }
    const int64_t clusters = index.filters.clusters;
    const int64_t wanted = grown_probes(index, request.probes, request.total);
    for (int64_t limit = std::max<int64_t>(wanted, 1);; limit *= 2) {
        TopCandidates& best = request.best_clusters;
        best.reset(limit, nullptr);
        scan_run(isa, index.centroids, all, 0, index.centroids.blocks, request.query.codes(), {}, best);
        best.cut();
        request.taken.clear();
        request.covered = 0;
        std::vector<uint64_t>& order = request.order;
        order.assign(best.hits(), best.hits() + best.count());
        std::sort(order.begin(), order.end(), std::greater<>());
        for (const uint64_t hit : order) {
            if (static_cast<int64_t>(request.taken.size()) >= wanted && request.covered >= request.candidates) return;
            const int64_t passing = passing_rows(isa, index, request, row_of(hit));
            if (passing == 0) continue;
            request.taken.push_back(row_of(hit));
            request.covered += passing;
        }
        const bool enough =
            static_cast<int64_t>(request.taken.size()) >= wanted && request.covered >= request.candidates;
        if (enough || best.count() < limit || limit >= clusters) return;
    }
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
            const float score = isa.dot_row(index.vectors.vectors + row * dims, request.padded.data(), dims) *
                                index.vectors.scales[row];
            order[static_cast<size_t>(i)] = packed_hit(score, static_cast<int32_t>(row));
        });
    std::sort(order.begin(), order.end(), [&](uint64_t a, uint64_t b) { return better(a, b, index.ids); });
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

// Scans what a group of requests has taken. Clusters that several of them want are read once.
void scan_group(const InstructionSet& isa, const SearchIndex& index, Request* const* group, int64_t count) {
    std::vector<uint64_t> shared;  // cluster in the high half, request in the low one
    for (int64_t r = 0; r < count; ++r) {
        Request& request = *group[r];
        const int64_t taken = static_cast<int64_t>(request.taken.size());
        const int64_t own = count == 1 ? taken : std::min(kOwnClusters, taken);
        scan_clusters(isa, index, request, 0, own, request.scan);
        for (int64_t i = own; i < taken; ++i)
            shared.push_back(static_cast<uint64_t>(request.taken[static_cast<size_t>(i)]) << 32 |
                             static_cast<uint64_t>(r));
    }
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
    for (int64_t r = 0; r < count; ++r) finish_scan(isa, index, *group[r], group[r]->scan);
}

// Bounds of as many groups of consecutive requests, with about as many rows to scan each.
std::vector<int64_t> share_out(const std::vector<Request*>& batch, int64_t groups) {
    int64_t rows = 0, before = 0;
    for (const Request* request : batch) rows += request->covered + 1;
    std::vector<int64_t> bounds{0};
    for (size_t i = 0; i < batch.size(); ++i) {
        while (static_cast<int64_t>(bounds.size()) < groups &&
               (2 * before + batch[i]->covered + 1) * groups >= 2 * rows * static_cast<int64_t>(bounds.size()))
            bounds.push_back(static_cast<int64_t>(i));
        before += batch[i]->covered + 1;
    }
    bounds.resize(static_cast<size_t>(groups) + 1, static_cast<int64_t>(batch.size()));
    return bounds;
}

// Lone requests: the clusters are dealt out to the threads, each with candidates of its own.
void scan_in_parts(const InstructionSet& isa, const SearchIndex& index, std::vector<Request*>& batch, int64_t parts) {
    std::vector<Scan> scans(batch.size() * static_cast<size_t>(parts));
    parallel_for(static_cast<int64_t>(scans.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const Request& request = *batch[static_cast<size_t>(task / parts)];
            const int64_t taken = static_cast<int64_t>(request.taken.size()), part = task % parts;
            Scan& scan = scans[static_cast<size_t>(task)];
            scan.best.reset(request.candidates, index.ids);
            scan_clusters(isa, index, request, taken * part / parts, taken * (part + 1) / parts, scan);
            finish_scan(isa, index, request, scan);
        }
    });
    for (size_t task = 0; task < scans.size(); ++task)
        batch[task / static_cast<size_t>(parts)]->scan.best.merge(scans[task].best);
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
    each([&](int64_t i) {
        Request& request = *batch[i];
        if (request.status != kStatusOk) return;
        choose_clusters(isa, index, limits, all, request);
        request.scan.best.reset(request.candidates, index.ids);
    });
    if (count >= threads) {
        const std::vector<int64_t> bounds = share_out(batch, threads);
        parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                scan_group(isa, index, batch.data() + bounds[static_cast<size_t>(t)],
                           bounds[static_cast<size_t>(t) + 1] - bounds[static_cast<size_t>(t)]);
        });
    } else {
        scan_in_parts(isa, index, batch, (threads + count - 1) / count);
    }
    each([&](int64_t i) {
        const int64_t b = first + i, width = limits.max_candidates;
        Request& request = *batch[i];
        const bool ok = request.status == kStatusOk;
        if (!ok) request.scan.best.reset(0, index.ids);
        finish(isa, index, requests.query + b * index.vectors.dims, request, width, results.rows + b * width,
               results.ids + b * width, results.scores + b * width);
        const int64_t stats[4] = {static_cast<int64_t>(request.taken.size()), request.total, request.covered,
                                  request.covered == request.total};
        for (int s = 0; s < 4; ++s) results.stats[4 * b + s] = ok ? static_cast<int32_t>(stats[s]) : 0;
        results.status[b] = request.status;
    });
}

}  // namespace

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
