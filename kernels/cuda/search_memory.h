// Where what the kernels of a search share lies in its scratch memory.
#pragma once

#include "alone.h"
#include "parts.h"

namespace silvertriton::cuda {

// What a search needs whose requests are searched alone. `more_room`: hits beyond those that they keep.
ST_HOST_DEVICE inline SearchRun plan_search(Parts& parts, const SearchRequests& requests, const SearchIndex& index,
                                            const SearchLimits& limits, const SearchResults& results,
                                            int64_t more_room) {
    const int64_t batch = requests.batch, clusters = index.filters.clusters;
    // Two words hold no filter: nothing is kept for one.
    const bool filters = requests.program_width > 2;
    SearchRun run{};
    run.requests = requests;
    run.index = index;
    run.limits = limits;
    run.results = results;
    run.states = parts.take<RequestState>(batch);
    run.query_groups = padded_groups(index.items.dims);
    run.query_codes = parts.take<int32_t>(batch * run.query_groups);
    run.units = parts.take<float>(batch * index.vectors.dims);
    run.projected = parts.take<float>(index.projection == nullptr ? 0 : batch * index.items.dims);
    const int64_t excluded = requests.exclude_width == 0 ? 0 : power_of_two(requests.exclude_width);
    run.excluded = parts.take<int32_t>(batch * excluded);
    int32_t* excluded_count = parts.take<int32_t>(batch);
    run.bounds = parts.take<uint32_t>(batch * clusters);
    run.order_room = power_of_two(clusters);
    run.order = parts.take<uint64_t>(batch * run.order_room);
    run.taken = parts.take<int32_t>(batch * clusters);
    run.taken_blocks = parts.take<int32_t>(batch * (clusters + 1));
    run.room = 4 * limits.max_candidates + kSlack + kStepHits + more_room;
    run.hits = parts.take<uint64_t>(batch * run.room);
    FilterRun& filter = run.filter;
    filter.index = index.filters;
    filter.call = {requests.program,
                   batch,
                   requests.program_width,
                   requests.fingerprint,
                   parts.take<uint32_t>(filters ? batch * index.filters.blocks : 0),
                   parts.take<int32_t>(batch),
                   results.status};
    filter.slots = parts.take<int32_t>(filters ? batch * requests.program_width : 0);
    filter.cluster_passing = parts.take<int32_t>(batch * clusters);
    filter.excluded = excluded == 0 ? nullptr : run.excluded;
    filter.excluded_count = excluded_count;
    filter.excluded_width = excluded;
    return run;
}

}  // namespace silvertriton::cuda
