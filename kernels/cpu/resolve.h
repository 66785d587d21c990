// What requests ask for, before anything is searched.
#pragma once

#include "request.h"

namespace silvertriton::cpu {

// Status, limits, query and excluded rows of request b. Nothing of a request that is not well is searched.
void resolve(const SearchRequests& requests, int64_t b, const SearchIndex& index, const SearchLimits& limits,
             Request& request);

// The rows that pass the filters of requests [first, first + batch.size()), where they have one; what is excluded does
// not pass.
void run_filters(const SearchRequests& requests, int64_t first, const SearchIndex& index, std::vector<Request*>& batch);

}  // namespace silvertriton::cpu
