#include "scan.h"

#include <algorithm>

#include "prefetch.h"
#include "rows.h"

namespace silvertriton::cpu {
namespace {

// Blocks scanned under one floor: few enough that it rises in time, enough that a call costs nothing.
constexpr int64_t kRunBlocks = 16;

// Rows of sparse blocks that are scored together.
constexpr int64_t kPendingRows = 256;

// Whether so many rows pass that most blocks hold several.
bool is_dense(const SearchIndex& index, const Request& request) {
    return request.total * 8 >= index.filters.item_ids.items;
}

// `next` from its block `offset` on.
NextBlocks skip(const NextBlocks& next, int64_t offset, int64_t dims) {
    if (offset >= next.blocks) return {};
    return {next.codes + offset * block_bytes(dims), next.scales + offset * kBlockRows, next.blocks - offset};
}

// The rows of blocks [first, last) that a request may return. Returns where they lie or, where some are excluded or
// `change` asks for it, a copy.
const uint32_t* present_rows(const SearchIndex& index, const Request& request, int64_t first, int64_t last, bool change,
                             uint32_t* copy) {
    const uint32_t* passing = (request.words != nullptr ? request.words : index.filters.valid) + first;
    const auto& excluded = request.excluded;
    auto row = std::lower_bound(excluded.begin(), excluded.end(), first * kBlockRows);
    if (!change && (row == excluded.end() || *row >= last * kBlockRows)) return passing;
    std::copy_n(passing, last - first, copy);
    for (; row != excluded.end() && *row < last * kBlockRows; ++row)
        copy[*row / kBlockRows - first] &= ~(1u << (*row % kBlockRows));
    return copy;
}

// Adds the rows of a mask without looking at them: all of them will be candidates.
void take_rows(const uint32_t* masks, int64_t first, int64_t blocks, TopCandidates& best) {
    for (int64_t b = 0; b < blocks; ++b) {
        uint64_t* hits = best.tail(kBlockRows);
        int64_t written = 0;
        for (uint32_t bits = masks[b]; bits != 0; bits &= bits - 1)
            hits[written++] = packed_hit(0.0f, static_cast<int32_t>((first + b) * kBlockRows + __builtin_ctz(bits)));
        best.grow(written);
    }
}

// Moves the rows of blocks that few rows of pass from the masks to `pending`. Returns whether any block is left.
bool split_sparse(const InstructionSet& isa, int64_t sparse, int64_t first, int64_t blocks, uint32_t* masks,
                  std::vector<int32_t>& pending) {
    const size_t before = pending.size();
    pending.resize(before + static_cast<size_t>(blocks * kBlockRows + 16));
    const int64_t taken =
        isa.take_sparse(masks, blocks, sparse, static_cast<int32_t>(first * kBlockRows), pending.data() + before);
    pending.resize(before + static_cast<size_t>(taken));
    return std::any_of(masks, masks + blocks, [](uint32_t mask) { return mask != 0; });
}

}  // namespace

void scan_run(const InstructionSet& isa, const CodeBlocks& blocks, const Spreads& spreads, const uint32_t* masks,
              int64_t first, int64_t last, const QueryCodes& query, const NextBlocks& next, TopCandidates& best) {
    for (int64_t block = first, count; block < last; block += count) {
        // The first floor comes as soon as possible: every row before it is a hit.
        const int64_t missing = best.missing();
        count = std::min(missing > 0 ? (missing + kBlockRows - 1) / kBlockRows : kRunBlocks, last - block);
        count = std::min(count, kRunBlocks);
        uint64_t* hits = best.tail(count * kBlockRows);
        best.grow(isa.scan_blocks(blocks.codes + block * block_bytes(blocks.dims), blocks.scales + block * kBlockRows,
                                  from_block(spreads, block), masks + (block - first), count,
                                  static_cast<int32_t>(block * kBlockRows), query, best.floor(),
                                  skip(next, block - first, blocks.dims), hits));
    }
}

NextBlocks next_blocks(const SearchIndex& index, const Request& request, int64_t cluster) {
    if (cluster < 0 || request.list != nullptr || !is_dense(index, request)) return {};
    const int64_t first = index.filters.cluster_blocks[cluster], last = index.filters.cluster_blocks[cluster + 1];
    return {index.items.codes + first * block_bytes(index.items.dims), index.items.scales + first * kBlockRows,
            last - first};
}

namespace {

// Asks for all of them at once.
void ask_for(const NextBlocks& blocks, int64_t dims) {
    ask(blocks.codes, blocks.blocks * block_bytes(dims));
    ask(blocks.scales, blocks.blocks * kBlockRows * 4);
}

// Set bits at most of a block of which single rows are read. Where codes lie row by row this changes no score: where
// many rows pass all blocks are read, in sequence and asked for ahead; where few do, a row is one cache line, and a
// block that nobody has asked for a few hundred nanoseconds.
int64_t sparse_rows(const SearchIndex& index, const Request& request) {
    constexpr int64_t kSparse = 8;
    if (index.row_codes.words == nullptr) return sparse_vectors(index.vectors.dims, index.items.dims);
    return is_dense(index, request) ? 0 : kSparse;
}

// As InstructionSet::scan_rows, from fp16 rows: `query` [D], padded.
int64_t scan_vectors(const InstructionSet& isa, const RowVectors& vectors, const int32_t* rows, int64_t count,
                     const float* query, float floor, uint64_t* hits) {
    const int64_t dims = vectors.dims;
    int64_t written = 0;
    for_each_row(
        vectors, count, [rows](int64_t i) { return rows[i]; },
        [&](int64_t, int64_t row) {
            const float score = isa.dot_row(vectors.vectors + row * dims, query, dims) * vectors.scales[row];
            if (score >= floor) hits[written++] = packed_hit(score, static_cast<int32_t>(row));
        });
    return written;
}

// The rows of one cluster where they are a list: block by block, as those of a mask, but nothing is looked at in
// between.
void scan_listed(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster,
                 int64_t sparse, bool all_fit, Scan& scan) {
    const RowList& list = *request.list;
    const int32_t* row = list.rows.data() + list.first_of[static_cast<size_t>(cluster)];
    const int32_t* end = list.rows.data() + list.first_of[static_cast<size_t>(cluster) + 1];
    while (row != end) {
        const int32_t block = *row / static_cast<int32_t>(kBlockRows);
        const int32_t* first = row;
        uint32_t mask = 0;
        for (; row != end && *row / static_cast<int32_t>(kBlockRows) == block; ++row) mask |= 1u << (*row % kBlockRows);
        if (all_fit) {
            take_rows(&mask, block, 1, scan.best);
        } else if (row - first <= sparse) {
            scan.pending.insert(scan.pending.end(), first, row);
        } else {
            scan_run(isa, index.items, {}, &mask, block, block + 1, request.query.codes(), {}, scan.best);
        }
    }
}

}  // namespace

void scan_cluster(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t cluster,
                  const NextBlocks& next, Scan& scan) {
    const int64_t first = index.filters.cluster_blocks[cluster], last = index.filters.cluster_blocks[cluster + 1];
    const int64_t sparse = sparse_rows(index, request);
    const bool all_fit = request.total <= request.candidates;
    uint32_t masks[kRunBlocks];
    const bool listed = request.list != nullptr, filtered = request.words != nullptr;
    if (listed) scan_listed(isa, index, request, cluster, sparse, all_fit, scan);
    for (int64_t block = listed ? last : first; block < last; block += kRunBlocks) {
        const int64_t end = std::min(block + kRunBlocks, last), count = end - block;
        const uint32_t* present = present_rows(index, request, block, end, filtered && sparse > 0, masks);
        if (all_fit) {
            take_rows(present, block, count, scan.best);
            continue;
        }
        if (filtered && sparse > 0 && !split_sparse(isa, sparse, block, count, masks, scan.pending)) continue;
        scan_run(isa, index.items, {}, present, block, end, request.query.codes(),
                 skip(next, block - first, index.items.dims), scan.best);
    }
    if (static_cast<int64_t>(scan.pending.size()) >= kPendingRows) finish_scan(isa, index, request, scan);
}

void scan_clusters(const InstructionSet& isa, const SearchIndex& index, const Request& request, int64_t first,
                   int64_t last, Scan& scan) {
    const int32_t* taken = request.taken.data();
    if (first < last) ask_for(next_blocks(index, request, taken[first]), index.items.dims);
    for (int64_t i = first; i < last; ++i) {
        const int64_t after = i + 1 < last ? taken[i + 1] : request.upcoming;
        scan_cluster(isa, index, request, taken[i], next_blocks(index, request, after), scan);
    }
}

void finish_scan(const InstructionSet& isa, const SearchIndex& index, const Request& request, Scan& scan) {
    const int64_t count = static_cast<int64_t>(scan.pending.size());
    const int32_t* rows = scan.pending.data();
    uint64_t* hits = scan.best.tail(count);
    scan.best.grow(
        index.row_codes.words != nullptr
            ? isa.scan_rows(index.row_codes.words, rows, count, request.query.codes(), scan.best.floor(), hits)
            : scan_vectors(isa, index.vectors, rows, count, request.query.units(), scan.best.floor(), hits));
    scan.pending.clear();
}

}  // namespace silvertriton::cpu
