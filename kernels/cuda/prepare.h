// One request made ready for a search, by a block: status, limits, query and excluded rows, and its filter made ready
// to run. All functions are called by all threads.
#pragma once

#include "dot.h"
#include "search.h"
#include "silvertriton/find_row.h"
#include "silvertriton/quantize.h"

namespace silvertriton::cuda {

struct PrepareShared {
    int32_t sums[kMostWarps];
    int32_t plan[2];
};

// Writes the query in units of its scale and its codes; returns the length of the codes.
__device__ inline float prepare_query(const SearchRun& run, int64_t b, PrepareShared& shared) {
    const int64_t dims = run.index.vectors.dims, code_dims = run.index.items.dims;
    const float* query = run.requests.query + b * dims;
    float* units = run.units + b * dims;
    float largest = 0.0f;
    for (int64_t i = thread_of_block(); i < dims; i += thread_count()) {
        units[i] = finite_or_zero(query[i]);
        largest = fmaxf(largest, fabsf(units[i]));
    }
    largest = block_max(largest, shared.sums);
    const float* coded = units;
    if (run.index.projection != nullptr) {
        // Divided first: the projection of a large query must not overflow. One fixed order, multiply and add rounded
        // apart.
        const float first_scale = scale_of(largest);
        for (int64_t i = thread_of_block(); i < dims; i += thread_count()) units[i] = in_scale(units[i], first_scale);
        __syncthreads();
        float* projected = run.projected + b * code_dims;
        float furthest = largest > 0.0f ? 127.0f : 0.0f;
        for (int64_t p = thread_of_block(); p < code_dims; p += thread_count()) {
            float sum = 0.0f;
            for (int64_t i = 0; i < dims; ++i) sum += units[i] * run.index.projection[i * code_dims + p];
            projected[p] = finite_or_zero(sum);
            furthest = fmaxf(furthest, fabsf(projected[p]));
        }
        largest = block_max(furthest, shared.sums);
        coded = projected;
    }
    const float scale = scale_of(largest);
    int32_t squares = 0;
    for (int64_t j = thread_of_block(); j < run.query_groups; j += thread_count()) {
        uint32_t group = 0;
        for (int64_t k = 0; k < 4; ++k) {
            const int64_t p = 4 * j + k;
            const int32_t code = p < code_dims ? code_of(in_scale(coded[p], scale)) : 0;
            group |= static_cast<uint32_t>(code & 0xff) << (8 * k);
            squares += code * code;
        }
        run.query_codes[b * run.query_groups + place_of_group(j)] = static_cast<int32_t>(group);
    }
    squares = block_sum(squares, shared.sums);  // all codes are read before units change
    for (int64_t i = thread_of_block(); i < dims; i += thread_count()) units[i] = in_scale(units[i], scale);
    return sqrtf(static_cast<float>(squares));
}

// Writes the excluded rows, ascending, each once; returns how many.
__device__ inline int32_t prepare_excluded(const SearchRun& run, int64_t b, PrepareShared& shared) {
    constexpr int32_t kNone = 2147483647;
    const int64_t count = run.requests.exclude_width, room = run.filter.excluded_width;
    if (count == 0) return 0;
    const ItemIds& items = run.index.filters.item_ids;
    int32_t* rows = run.excluded + b * room;
    const auto smaller = [](int32_t x, int32_t y) { return x < y; };
    for (int64_t e = thread_of_block(); e < room; e += thread_count()) {
        const int64_t id = e < count ? run.requests.exclude[b * count + e] : -1;
        const int32_t row = id < 0 ? -1 : find_row(items, id);
        rows[e] = row < 0 ? kNone : row;
    }
    sort_block(rows, room, smaller);
    // Copies become none, from the last tile on, so that those before them are read in time.
    int32_t found = 0;
    for (int64_t base = (room - 1) / thread_count() * thread_count(); base >= 0; base -= thread_count()) {
        const int64_t e = base + thread_of_block();
        const bool is_copy = e < room && e > 0 && rows[e] == rows[e - 1];
        const bool is_new = e < room && !is_copy && rows[e] != kNone;
        found += block_sum(is_new, shared.sums);
        if (is_copy) rows[e] = kNone;
    }
    sort_block(rows, room, smaller);
    return found;
}

// Whether the clusters' blocks follow each other from 0 to NB: all that is read of an index by cluster lies within it
// then.
__device__ inline bool clusters_are_sound(const FilterIndex& index, PrepareShared& shared) {
    const int32_t* first = index.cluster_blocks;
    int32_t bad = first[0] != 0 || first[index.clusters] != index.blocks;
    for (int64_t c = thread_of_block(); c < index.clusters; c += thread_count()) bad |= first[c] > first[c + 1];
    return block_sum(bad, shared.sums) == 0;
}

// Writes all of it but for the counts of rows that pass.
__device__ inline void prepare_request(const SearchRun& run, int64_t b, PrepareShared& shared) {
    constexpr float kLargest = 3.402823466e38f;
    const SearchRequests& requests = run.requests;
    const int64_t dims = run.index.vectors.dims, clusters = run.index.filters.clusters;
    int32_t bad = 0;
    for (int64_t i = thread_of_block(); i < dims; i += thread_count())
        bad |= !(fabsf(requests.query[b * dims + i]) <= kLargest);
    const bool bad_query = block_sum(bad, shared.sums) != 0;
    bad = 0;
    for (int64_t e = thread_of_block(); e < requests.exclude_width; e += thread_count())
        bad |= requests.exclude[b * requests.exclude_width + e] < -1;
    const bool bad_exclude = block_sum(bad, shared.sums) != 0;
    const int64_t probes = requests.limits[2 * b], candidates = requests.limits[2 * b + 1];
    int32_t status = requests.status[b];
    if (bad_query) status = first_status(status, kStatusQuery);
    if (bad_exclude) status = first_status(status, kStatusExclude);
    if (probes < 0 || probes > clusters || candidates < 0 || candidates > run.limits.max_candidates)
        status = first_status(status, kStatusSearch);
    if (!clusters_are_sound(run.index.filters, shared)) status = first_status(status, kStatusIndex);
    const bool filtered = requests.program[b * requests.program_width + 1] != 0;
    if (filtered) status = first_status(status, plan_program(run.filter, b, shared.plan));
    const float length = prepare_query(run, b, shared);
    const int32_t excluded = prepare_excluded(run, b, shared);
    if (thread_of_block() == 0) {
        run.states[b] = {static_cast<int32_t>(at_most(probes == 0 ? run.limits.probes : probes, clusters)),
                         static_cast<int32_t>(candidates == 0 ? run.limits.candidates : candidates), filtered, excluded,
                         length};
        run.results.status[b] = status;
        if (requests.exclude_width > 0) run.filter.excluded_count[b] = excluded;
    }
}

}  // namespace silvertriton::cuda
