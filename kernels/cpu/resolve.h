// What requests ask for, before anything is searched.
#pragma once

#include "request.h"

namespace silvertriton::cpu {

// Status, limits, query and excluded rows of request b. Nothing of a request that is not well is searched.
void resolve(const SearchRequests& requests, int64_t b, const SearchIndex& index, const SearchLimits& limits,
             Request& request);

// The rows that each request of the batch may return: those that pass its filter, where it has one, and are not
// excluded. `filters` are those of the batch.
void run_filters(const SearchRequests& requests, const SearchIndex& index, SharedFilters& filters,
                 const std::vector<Request*>& batch);

}  // namespace silvertriton::cpu
