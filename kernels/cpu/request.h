// One request on its way through the search.
#pragma once

#include <vector>

#include "operators.h"
#include "query.h"
#include "shared_filters.h"
#include "silvertriton/instruction_set.h"
#include "top_candidates.h"

namespace silvertriton::cpu {

// What scanning has found so far. Rows of sparse blocks wait until there are enough to ask memory for them together.
struct Scan {
    TopCandidates best;
    std::vector<int32_t> pending;
};

// One request on its way through the search. Its buffers are reused by later requests.
struct Request {
    int32_t status = 0;
    const uint32_t* words = nullptr;     // [NB] with a filter: the rows that pass it, excluded ones among them
    const RowList* list = nullptr;       // where they are known as a list, that instead, excluded ones taken out
    bool exact = false;                  // so few rows pass that all of them are scanned
    int64_t probes = 0, candidates = 0;  // 0 probes: as many as may hold a candidate
    PreparedQuery query;
    std::vector<int64_t> places;          // of the excluded ids among the items', -1 for none
    std::vector<int32_t> excluded;        // rows, ascending
    RowList own_list;                     // what `list` is where it is not the filter's
    int64_t total = 0;                    // rows that pass
    Spreads spreads{};                    // of the clusters: how far beyond its mean each may hold a candidate
    std::vector<int32_t> taken;           // clusters to scan, best first
    int64_t scanned = 0;                  // as many of them have been scanned
    int64_t covered = 0;                  // rows that pass in all taken
    int64_t considered = 0;               // clusters that were taken or have no row that passes
    int64_t upcoming = -1;                // the cluster that may be scanned after those taken
    bool exhausted = false;               // no other cluster is left to consider
    std::vector<uint64_t> best_clusters;  // by bound, descending
    int64_t ordered = 0;                  // so many are among those, unless fewer reach the floor
    Scan scan;
    std::vector<uint64_t> order, spare;
    std::vector<float> padded;

    void clear() {
        excluded.clear();
        taken.clear();
        scan.pending.clear();  // of a search that ran out of memory
        words = nullptr;
        list = nullptr;
        exact = exhausted = false;
        total = scanned = covered = considered = ordered = 0;
        upcoming = -1;
    }
};

}  // namespace silvertriton::cpu
