#include "rounds.h"

#include <algorithm>

#include "parallel.h"
#include "probe.h"
#include "scan.h"

namespace silvertriton::cpu {
namespace {

// Blocks of a lone request for which another thread is woken, which takes some microseconds.
constexpr int64_t kBlocksOfThread = 256;

int64_t blocks_of(const SearchIndex& index, int32_t cluster) {
    return index.filters.cluster_blocks[cluster + 1] - index.filters.cluster_blocks[cluster];
}

// After it the floor is that of the worst candidate.
void end_round(const InstructionSet& isa, const SearchIndex& index, Request& request) {
    finish_scan(isa, index, request, request.scan);
    request.scan.best.cut();
}

// One request's round, by itself.
void scan_round(const InstructionSet& isa, const SearchIndex& index, Request& request) {
    scan_clusters(isa, index, request, request.scanned, static_cast<int64_t>(request.taken.size()), request.scan);
    end_round(isa, index, request);
}

// Scans the clusters that a group of requests has taken in this round. What several of them want is read once.
void scan_shared(const InstructionSet& isa, const SearchIndex& index, const std::vector<Request*>& group) {
    thread_local std::vector<uint64_t> shared;  // cluster in the high half, request in the low one
    shared.clear();
    for (size_t r = 0; r < group.size(); ++r)
        for (auto i = static_cast<size_t>(group[r]->scanned); i < group[r]->taken.size(); ++i)
            shared.push_back(static_cast<uint64_t>(group[r]->taken[i]) << 32 | r);
    std::sort(shared.begin(), shared.end());
    const auto cluster_at = [&](size_t i) { return i < shared.size() ? static_cast<int64_t>(shared[i] >> 32) : -1; };
    for (size_t i = 0, after = 0; i < shared.size(); ++i) {
        Request& request = *group[shared[i] & 0xffffffffu];
        const int64_t cluster = cluster_at(i);
        NextBlocks next{};
        if (i >= after) {  // the first request of this cluster asks for the one after it
            for (after = i + 1; cluster_at(after) == cluster;) ++after;
            next = next_blocks(index, request, cluster_at(after));
        }
        scan_cluster(isa, index, request, cluster, next, request.scan);
    }
}

}  // namespace

void search_first_round(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, Request& request) {
    if (take_clusters(isa, index, all, request)) scan_round(isa, index, request);
}

void search_group(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all,
                  std::vector<Request*>& group) {
    for (;;) {
        const auto ended = [&](Request* request) { return !take_clusters(isa, index, all, *request); };
        group.erase(std::remove_if(group.begin(), group.end(), ended), group.end());
        if (group.empty()) return;
        if (group.size() == 1) {
            scan_round(isa, index, *group[0]);
            continue;
        }
        scan_shared(isa, index, group);
        for (Request* request : group) end_round(isa, index, *request);
    }
}

void search_alone(const InstructionSet& isa, const SearchIndex& index, const uint32_t* all, int64_t threads,
                  Request& request) {
    while (take_clusters(isa, index, all, request)) {
        const int64_t first = request.scanned, count = static_cast<int64_t>(request.taken.size()) - first;
        int64_t blocks = 0;
        for (int64_t i = first; i < first + count; ++i) blocks += blocks_of(index, request.taken[i]);
        const int64_t parts = std::min({threads, count, blocks / kBlocksOfThread});
        if (parts <= 1) {
            scan_round(isa, index, request);
            continue;
        }
        std::vector<Scan> scans(static_cast<size_t>(parts));
        parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) {
                Scan& scan = scans[static_cast<size_t>(part)];
                scan.best.reset(request.candidates, index.filters.item_ids.ids, request.scan.best.floor());
                scan_clusters(isa, index, request, first + count * part / parts, first + count * (part + 1) / parts,
                              scan);
                finish_scan(isa, index, request, scan);
            }
        });
        for (const Scan& scan : scans) request.scan.best.merge(scan.best);
        request.scan.best.cut();
    }
}

}  // namespace silvertriton::cpu
