#include "shared_filters.h"

#include <algorithm>

namespace silvertriton::cpu {
namespace {

// What lies behind the code of a well-formed program is ignored, so it may differ.
bool equal_programs(const int64_t* a, const int64_t* b, int64_t width) {
    if (a[0] != b[0] || a[1] != b[1]) return false;
    const int64_t length = a[1] < 0 || a[1] > width - 2 ? width - 2 : a[1];
    return std::equal(a + 2, a + 2 + length, b + 2);
}

}  // namespace

void RowList::find_clusters(const FilterIndex& index) {
    const int32_t count = static_cast<int32_t>(rows.size());
    first_of.resize(static_cast<size_t>(index.clusters) + 1);
    int32_t row = 0;
    for (int64_t c = 0; c <= index.clusters; ++c) {
        while (row < count && rows[static_cast<size_t>(row)] < index.cluster_blocks[c] * kBlockRows) ++row;
        first_of[static_cast<size_t>(c)] = row;
    }
}

SharedFilter* SharedFilters::find_or_add(const int64_t* program, int64_t width, int64_t most) {
    for (size_t f = 0; f < used_; ++f)
        if (equal_programs(filters_[f]->program, program, width)) return filters_[f].get();
    if (static_cast<int64_t>(used_) == most) return nullptr;
    if (used_ == filters_.size()) filters_.push_back(std::make_unique<SharedFilter>());
    SharedFilter* added = filters_[used_++].get();
    added->program = program;
    added->wanted = false;
    return added;
}

int64_t SharedFilters::take(const SearchRequests& requests, int64_t first, int64_t most) {
    used_ = 0;
    of_request_.clear();
    for (int64_t b = first; b < requests.batch; ++b) {
        const int64_t* program = requests.program + b * requests.program_width;
        SharedFilter* filter = nullptr;
        if (program[1] != 0) {
            filter = find_or_add(program, requests.program_width, most);
            if (filter == nullptr) break;
        }
        of_request_.push_back(filter);
    }
    return static_cast<int64_t>(of_request_.size());
}

void SharedFilters::run(const SearchRequests& requests, const SearchIndex& index) {
    std::vector<FilterRequest> running;
    std::vector<SharedFilter*> wanted;
    for (size_t f = 0; f < used_; ++f) {
        SharedFilter& filter = *filters_[f];
        if (!filter.wanted) continue;
        running.push_back(
            {filter.program, filter.words.reserve(index.items.blocks), &filter.list.rows, false, 0, kStatusOk});
        wanted.push_back(&filter);
    }
    if (running.empty()) return;
    filter_rows("search", running.data(), static_cast<int64_t>(running.size()), requests.program_width,
                requests.fingerprint, index.filters);
    for (size_t i = 0; i < running.size(); ++i) {
        wanted[i]->status = running[i].status;
        wanted[i]->listed = running[i].listed;
        wanted[i]->passing = running[i].passing;
        if (running[i].listed) wanted[i]->list.find_clusters(index.filters);
    }
}

}  // namespace silvertriton::cpu
