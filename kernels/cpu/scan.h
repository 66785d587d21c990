// Scanning the rows of clusters that a request has taken, without ever writing out all scores.
#pragma once

#include "request.h"

namespace silvertriton::cpu {

// Scores the masked rows of blocks [first, last) from their codes.
void scan_run(const InstructionSet& isa, const CodeBlocks& blocks, const Spreads& spreads, const uint32_t* masks,
              int64_t first, int64_t last, const QueryCodes& query, const NextBlocks& next, TopCandidates& best);

// The cluster that is scanned next, if there is one (-1) and most of it will be read.
NextBlocks next_blocks(const SearchIndex& index, const Request& request, int64_t cluster);

// Scans one cluster that the request has taken; finish_scan after the last.
void scan_cluster(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster,
                  const NextBlocks& next, Scan& scan);

// Scans taken[first .. last) of the request.
void scan_clusters(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t first,
                   int64_t last, Scan& scan);

void finish_scan(const InstructionSet& isa, const SearchIndex& index, const Request& request, Scan& scan);

}  // namespace silvertriton::cpu
