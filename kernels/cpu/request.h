// One request on its way through the search.
#pragma once

#include <memory>
#include <vector>

#include "operators.h"
#include "query.h"
#include "silvertriton/instruction_set.h"
#include "top_candidates.h"

namespace silvertriton::cpu {

// What scanning has found so far. Rows of sparse blocks wait until there are enough to ask memory for them together.
struct Scan {
    TopCandidates best;
    std::vector<int32_t> pending;
};

// Mask words without a value: most of a large mask is never touched by a request that gets a list.
class Mask {
  public:
    uint32_t* reserve(int64_t blocks) {
        if (blocks > size_) words_.reset(new uint32_t[static_cast<size_t>(size_ = blocks)]);
        return words_.get();
    }
    uint32_t* data() { return words_.get(); }
    const uint32_t* data() const { return words_.get(); }

  private:
    std::unique_ptr<uint32_t[]> words_;
    int64_t size_ = 0;
};

// One request on its way through the search. Its buffers are reused by later requests.
struct Request {
    int32_t status = 0;
    bool filtered = false;
    bool listed = false;                 // filtered, and the rows that pass are `rows`, else those of `words`
    bool exact = false;                  // so few rows pass that all of them are scanned
    int64_t probes = 0, candidates = 0;  // 0 probes: as many as may hold a candidate
    PreparedQuery query;
    std::vector<int32_t> excluded;        // rows, ascending
    Mask words;                           // [NB] with a filter: the rows that pass, exclusions taken out
    std::vector<int32_t> rows;            // the same as a list, ascending
    std::vector<int32_t> first_of;        // [C + 1]: rows[first_of[c] .. first_of[c + 1]] are in cluster c
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
        listed = exact = exhausted = false;
        total = scanned = covered = considered = ordered = 0;
        upcoming = -1;
    }
};

}  // namespace silvertriton::cpu
