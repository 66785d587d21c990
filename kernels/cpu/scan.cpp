// scan: the best masked rows of the taken clusters, without ever writing out all scores.

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "query.h"
#include "silvertriton/order.h"

namespace silvertriton::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Better {
    const int64_t* ids;
    bool operator()(const Candidate& a, const Candidate& b) const { return better(a, b, ids); }
};

// The best `limit` candidates seen so far. Twice as many are buffered, then cut back by selection; the score of the
// last one kept is the floor that later rows must reach. Rows at the floor still enter, their ids decide at the cut.
class TopCandidates {
  public:
    TopCandidates(int64_t limit, const int64_t* ids) : limit_(static_cast<size_t>(limit)), ids_(ids) {}

    float floor() const { return floor_; }

    void add(float score, int64_t row) {
        kept_.push_back({sortable(score), static_cast<int32_t>(row)});
        if (kept_.size() >= 2 * limit_) cut();
    }

    void merge(const TopCandidates& other) { kept_.insert(kept_.end(), other.kept_.begin(), other.kept_.end()); }

    // Writes the best rows in order and returns how many.
    int64_t write(int32_t* rows) {
        cut();
        std::sort(kept_.begin(), kept_.end(), Better{ids_});
        std::transform(kept_.begin(), kept_.end(), rows, [](const Candidate& candidate) { return candidate.row; });
        return static_cast<int64_t>(kept_.size());
    }

  private:
    void cut() {
        if (kept_.size() <= limit_) return;
        std::nth_element(kept_.begin(), kept_.begin() + static_cast<int64_t>(limit_) - 1, kept_.end(), Better{ids_});
        kept_.resize(limit_);
        floor_ = score_of(kept_.back().key);
    }

    size_t limit_;
    const int64_t* ids_;
    float floor_ = kMinusInfinity;
    std::vector<Candidate> kept_;
};

struct Items {
    const InstructionSet& isa;
    const CodeBlocks& codes;
    const RowVectors& vectors;
    const int32_t* cluster_blocks;
    int64_t clusters;
};

// Scans taken[first .. last) and returns the rows scored.
int64_t scan_clusters(const Items& items, const QuantizedQuery& query, const uint32_t* words, const int32_t* taken,
                      int64_t first, int64_t last, TopCandidates& best) {
    const int64_t dims = items.codes.dims, bytes = block_bytes(dims);
    float scores[kBlockRows];
    int64_t scanned = 0;
    for (int64_t i = first; i < last; ++i) {
        const int64_t cluster = taken[i];
        if (cluster < 0 || cluster >= items.clusters) continue;
        for (int64_t block = items.cluster_blocks[cluster]; block < items.cluster_blocks[cluster + 1]; ++block) {
            const uint32_t mask = words[block];
            if (mask == 0) continue;
            const int64_t first_row = block * kBlockRows;
            const int set = count_bits(mask);
            scanned += set;
            if (set <= kSparseRows) {
                for (uint32_t bits = mask; bits != 0; bits &= bits - 1) {
                    const int64_t row = first_row + __builtin_ctz(bits);
                    const float score = items.isa.dot_row(items.vectors.vectors + row * dims, query.units(), dims) *
                                        items.vectors.scales[row];
                    if (score >= best.floor()) best.add(score, row);
                }
                continue;
            }
            uint32_t bits =
                mask & items.isa.score_block(items.codes.codes + block * bytes, items.codes.scales + first_row,
                                             query.codes(), best.floor(), scores);
            for (; bits != 0; bits &= bits - 1) {
                const int r = __builtin_ctz(bits);
                best.add(scores[r], first_row + r);
            }
        }
    }
    return scanned;
}

}  // namespace

void scan(const ScanRequests& requests, const CodeBlocks& items, const RowVectors& vectors, const int64_t* ids,
          const int32_t* cluster_blocks, int64_t clusters, int32_t* rows, int32_t* scanned) {
    const Items all{instruction_set(), items, vectors, cluster_blocks, clusters};
    const int64_t batch = requests.batch, width = requests.max_candidates;
    const auto limit_of = [&](int64_t b) {
        return std::clamp<int64_t>(requests.candidates[b], 0, std::min(width, vectors.rows));
    };

    // With fewer requests than threads each request's clusters are dealt out in parts with candidates of their own.
    // The order of candidates is total, so the best of the parts' best are the best of all.
    const int64_t parts = std::max<int64_t>((thread_count() + batch - 1) / std::max<int64_t>(batch, 1), 1);
    std::vector<TopCandidates> best;
    best.reserve(static_cast<size_t>(batch * parts));
    for (int64_t task = 0; task < batch * parts; ++task) best.emplace_back(limit_of(task / parts), ids);
    std::vector<int64_t> counts(static_cast<size_t>(batch * parts));

    parallel_for(batch * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t b = task / parts, part = task % parts;
            if (limit_of(b) == 0) continue;
            const int64_t taken = std::clamp<int64_t>(requests.probed[b], 0, clusters);
            const QuantizedQuery query(requests.query + b * items.dims, items.dims);
            counts[task] =
                scan_clusters(all, query, requests.words + b * items.blocks, requests.clusters + b * clusters,
                              taken * part / parts, taken * (part + 1) / parts, best[task]);
        }
    });
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            TopCandidates& merged = best[b * parts];
            int64_t count = counts[b * parts];
            for (int64_t part = 1; part < parts; ++part) {
                merged.merge(best[b * parts + part]);
                count += counts[b * parts + part];
            }
            int32_t* out = rows + b * width;
            std::fill(out + merged.write(out), out + width, -1);
            scanned[b] = static_cast<int32_t>(count);
        }
    });
}

}  // namespace silvertriton::cpu
