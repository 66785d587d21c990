// probe: which clusters to scan, best first, until there are enough of them and enough passing rows in them.

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "query.h"
#include "silvertriton/order.h"

namespace silvertriton::cpu {
namespace {

// Smaller is better: score descending in the high half, cluster number ascending in the low one.
uint64_t rank_of(float score, int64_t cluster) {
    return static_cast<uint64_t>(~sortable(score)) << 32 | static_cast<uint64_t>(cluster);
}

int32_t probe_one(const InstructionSet& isa, const float* query, const CodeBlocks& centroids, int64_t clusters,
                  const int32_t* passing, int64_t probes, int64_t candidates, int32_t* taken) {
    const QuantizedQuery quantized(query, centroids.dims);
    std::vector<uint64_t> ranks;
    ranks.reserve(static_cast<size_t>(clusters));
    float scores[kBlockRows];
    for (int64_t block = 0; block < centroids.blocks; ++block) {
        isa.score_block(centroids.codes + block * block_bytes(centroids.dims), centroids.scales + block * kBlockRows,
                        quantized.codes(), -std::numeric_limits<float>::infinity(), scores);
        const int64_t end = std::min((block + 1) * kBlockRows, clusters);
        for (int64_t c = block * kBlockRows; c < end; ++c)
            if (passing[c] > 0) ranks.push_back(rank_of(scores[c % kBlockRows], c));
    }

    // Sorted piece by piece: mostly the first `probes` are enough, and a narrow filter has few to sort.
    int64_t count = 0, rows = 0, sorted = 0;
    const int64_t total = static_cast<int64_t>(ranks.size());
    for (int64_t piece = std::max<int64_t>(probes, 16); count < total && (count < probes || rows < candidates);) {
        if (count == sorted) {
            sorted = std::min(sorted + piece, total);
            if (sorted < total) std::nth_element(ranks.begin() + count, ranks.begin() + sorted, ranks.end());
            std::sort(ranks.begin() + count, ranks.begin() + sorted);
            piece = sorted;
        }
        const int32_t cluster = static_cast<int32_t>(ranks[count] & 0xffffffffu);
        taken[count++] = cluster;
        rows += passing[cluster];
    }
    std::fill(taken + count, taken + clusters, -1);
    return static_cast<int32_t>(count);
}

}  // namespace

void probe(const float* query, const CodeBlocks& centroids, int64_t batch, int64_t clusters, const int32_t* passing,
           const int32_t* probes, const int32_t* candidates, int32_t* taken, int32_t* probed) {
    const InstructionSet& isa = instruction_set();
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            probed[b] = probe_one(isa, query + b * centroids.dims, centroids, clusters, passing + b * clusters,
                                  probes[b], candidates[b], taken + b * clusters);
    });
}

}  // namespace silvertriton::cpu
