#include "resolve.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "find_items.h"
#include "silvertriton/program.h"

namespace silvertriton::cpu {
namespace {

bool finite(const float* query, int64_t dims) {
    bool all = true;
    for (int64_t i = 0; i < dims; ++i) all &= std::fabs(query[i]) <= std::numeric_limits<float>::max();
    return all;
}

// What passes the filter and is not excluded.
void apply(const SharedFilter& filter, const FilterIndex& index, Request& request) {
    const auto& excluded = request.excluded;
    request.total = filter.passing;
    if (!filter.listed) {
        request.words = filter.words.data();
        for (const int32_t row : excluded) request.total -= has_row(request.words, row);
        return;
    }
    request.list = &filter.list;
    const auto& rows = filter.list.rows;
    const auto among = [](const std::vector<int32_t>& sorted) {
        return [&sorted](int32_t row) { return std::binary_search(sorted.begin(), sorted.end(), row); };
    };
    if (std::none_of(excluded.begin(), excluded.end(), among(rows))) return;
    request.own_list.rows.clear();
    std::remove_copy_if(rows.begin(), rows.end(), std::back_inserter(request.own_list.rows), among(excluded));
    request.own_list.find_clusters(index);
    request.list = &request.own_list;
    request.total = static_cast<int64_t>(request.own_list.rows.size());
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
    if (status != kStatusOk && program[1] != 0) {  // nobody else looks at this program
        const ProgramShape shape = check_program(program, requests.program_width, requests.fingerprint,
                                                 index.filters.feature_number, index.filters.features);
        status = first_status(status, shape.status);
    }
    request.status = status;
    if (status != kStatusOk) return;

    request.probes = probes == 0 ? limits.probes : probes;
    request.candidates = candidates == 0 ? limits.candidates : candidates;
    request.query.prepare(query, dims, index.projection, index.items.dims);
    const ItemIds& items = index.filters.item_ids;
    request.places.resize(static_cast<size_t>(requests.exclude_width));
    find_items(items, exclude, requests.exclude_width, request.places.data());
    for (const int64_t place : request.places)
        if (place >= 0) request.excluded.push_back(items.item_rows[place]);
    std::sort(request.excluded.begin(), request.excluded.end());
    request.excluded.erase(std::unique(request.excluded.begin(), request.excluded.end()), request.excluded.end());
}

void run_filters(const SearchRequests& requests, const SearchIndex& index, SharedFilters& filters,
                 const std::vector<Request*>& batch) {
    for (size_t i = 0; i < batch.size(); ++i)
        if (filters.of(i) != nullptr && batch[i]->status == kStatusOk) filters.of(i)->wanted = true;
    filters.run(requests, index);
    for (size_t i = 0; i < batch.size(); ++i) {
        const SharedFilter* filter = filters.of(i);
        Request& request = *batch[i];
        if (request.status != kStatusOk) continue;
        if (filter == nullptr) {
            request.total = index.filters.item_ids.items - static_cast<int64_t>(request.excluded.size());
        } else {
            request.status = filter->status;
            if (request.status == kStatusOk) apply(*filter, index.filters, request);
        }
    }
}

}  // namespace silvertriton::cpu
