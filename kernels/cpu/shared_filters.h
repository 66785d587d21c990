// The filters of requests that are searched together. Equal ones run once: they are often those of one page or one
// market, and a mask of a million rows takes longer to write than a cluster to scan.
#pragma once

#include <memory>
#include <vector>

#include "operators.h"

namespace silvertriton::cpu {

// Mask words without a value: most of a large mask is never touched by a request that gets a list.
class Mask {
  public:
    uint32_t* reserve(int64_t blocks) {
        if (blocks > size_) words_.reset(new uint32_t[static_cast<size_t>(size_ = blocks)]);
        return words_.get();
    }
    const uint32_t* data() const { return words_.get(); }

  private:
    std::unique_ptr<uint32_t[]> words_;
    int64_t size_ = 0;
};

// Rows that pass, where they are few.
struct RowList {
    std::vector<int32_t> rows;      // ascending
    std::vector<int32_t> first_of;  // [C + 1]: rows[first_of[c] .. first_of[c + 1]] are in cluster c

    void find_clusters(const FilterIndex& index);
};

// What passes one filter. Nothing of it changes while requests are searched: what they exclude still passes.
struct SharedFilter {
    const int64_t* program = nullptr;  // [F]
    bool wanted = false;               // a request waits for it
    bool listed = false;               // the rows that pass are those of `list`, else of `words`
    int32_t status = 0;
    int64_t passing = 0;
    Mask words;
    RowList list;
};

class SharedFilters {
  public:
    // Takes the filters of as many requests from `first` on as have at most `most` different ones. Returns how many
    // requests those are.
    int64_t take(const SearchRequests& requests, int64_t first, int64_t most);

    // That of the i-th of those requests, null where it has none.
    SharedFilter* of(size_t i) { return of_request_[i]; }

    // Runs those that are wanted.
    void run(const SearchRequests& requests, const SearchIndex& index);

  private:
    SharedFilter* find_or_add(const int64_t* program, int64_t width, int64_t most);

    std::vector<std::unique_ptr<SharedFilter>> filters_;  // the first used_ of them are in use, the others are kept
    size_t used_ = 0;
    std::vector<SharedFilter*> of_request_;
};

}  // namespace silvertriton::cpu
