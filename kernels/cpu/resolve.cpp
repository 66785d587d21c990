#include "resolve.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "find_row.h"
#include "silvertriton/program.h"

namespace silvertriton::cpu {
namespace {

bool finite(const float* query, int64_t dims) {
    bool all = true;
    for (int64_t i = 0; i < dims; ++i) all &= std::fabs(query[i]) <= std::numeric_limits<float>::max();
    return all;
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

}  // namespace

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
    const ItemIds items{index.ids, index.item_rows, index.vectors.rows, index.item_count};
    for (int64_t e = 0; e < requests.exclude_width; ++e) {
        const int32_t row = exclude[e] < 0 ? -1 : find_row(items, exclude[e]);
        if (row >= 0) request.excluded.push_back(row);
    }
    std::sort(request.excluded.begin(), request.excluded.end());
    request.excluded.erase(std::unique(request.excluded.begin(), request.excluded.end()), request.excluded.end());
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
    filter_rows("search", filters.data(), static_cast<int64_t>(filters.size()), requests.program_width,
                requests.fingerprint, index.filters);
    for (size_t i = 0; i < filters.size(); ++i) {
        Request& request = *filtered[i];
        request.status = filters[i].status;
        request.listed = filters[i].listed;
        request.total = filters[i].passing;
        exclude_rows(request);
    }
}

}  // namespace silvertriton::cpu
