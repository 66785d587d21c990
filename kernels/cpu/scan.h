// Scanning the rows of clusters that a request has taken, without ever writing out all scores.
#pragma once

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

// One request on its way through the search. Its buffers are reused by later requests.
struct Request {
    int32_t status = 0;
    bool filtered = false;
    int64_t probes = 0, candidates = 0;
    PreparedQuery query;
    std::vector<int32_t> excluded;  // rows, ascending
    std::vector<uint32_t> words;    // [NB] with a filter: the rows that pass, exclusions taken out
    std::vector<int32_t> passing;   // [C] with a filter: how many of them are in each cluster
    int64_t total = 0;              // rows that pass
    std::vector<int32_t> taken;     // clusters to scan, best first
    int64_t covered = 0;            // rows that pass in those
    TopCandidates best_clusters;
    Scan scan;
    std::vector<uint32_t> masks;  // clusters with a passing row
    std::vector<uint64_t> order;
    std::vector<float> padded;

    void clear() {
        excluded.clear();
        taken.clear();
        total = covered = 0;
    }
};

// Scores the masked rows of blocks [first, last) from their codes.
void scan_run(const InstructionSet& isa, const CodeBlocks& blocks, const uint32_t* masks, int64_t first, int64_t last,
              const QueryCodes& query, TopCandidates& best);

// Scans one cluster that the request has taken; finish_scan after the last.
void scan_cluster(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster,
                  Scan& scan);

// Scans taken[first .. last) of the request.
void scan_clusters(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t first,
                   int64_t last, Scan& scan);

void finish_scan(const InstructionSet& isa, const SearchIndex& index, const Request& request, Scan& scan);

}  // namespace silvertriton::cpu
