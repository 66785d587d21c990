// The search of requests that have been resolved and filtered, up to their candidates: a round of clusters at a time.
#pragma once

#include "request.h"

namespace silvertriton::cpu {

// `all`, here and below: a mask over the blocks of centroids. A request's best clusters, best first, so that it has a
// floor soon.
void search_first_round(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, Request& request);

// The other rounds of one thread's share of a batch. Clusters that several requests want in the same round are read
// once. The group is emptied.
void search_group(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all,
                  std::vector<Request*>& group);

// One request for all threads: the clusters of a large round are dealt out to them, each with candidates of its own.
void search_alone(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, int64_t threads,
                  Request& request);

}  // namespace silvertriton::cpu
