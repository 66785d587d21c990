// Which clusters a request scans, a round at a time. Without a number of probes they are as many as may hold a row that
// becomes a candidate: their bound, the query's product with their mean plus some standard deviations of their rows,
// reaches the worst candidate of the rounds before. (If a cluster's products with a query are taken as normal, that
// bound is the same for all clusters where the next row read has the same chance to become a candidate.)
#pragma once

#include "request.h"

namespace silvertriton::cpu {

// To be called when it is known which rows pass.
void start_probing(const SearchIndex& index, const SearchLimits& limits, Request& request);

// Appends the clusters of the next round to taken[scanned ..]; all that were taken before have been scanned, and
// scan.best has been cut. False where there are none. Depends on nothing but the request and the index.
// `all`: a mask over the blocks of centroids.
bool take_clusters(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, Request& request);

// About how many clusters more the request will scan, and at least 1: among those that have been put in order.
int64_t clusters_expected(const Request& request);

}  // namespace silvertriton::cpu
