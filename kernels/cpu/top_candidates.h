// The best rows seen so far, by threshold.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "silvertriton/order.h"

namespace silvertriton::cpu {

// Keeps the best `limit` hits: score descending, then smaller id (smaller row without ids). More are buffered, then cut
// back by selection; the score of the last one kept is the floor that later rows must reach. Rows at the floor still
// enter, their ids decide at the cut. The order is total, so the result does not depend on the order of arrival.
class TopCandidates {
  public:
    // `floor`: what others have found already; rows below it are of no use.
    void reset(int64_t limit, const int64_t* ids, float floor = kMinusInfinity) {
        limit_ = trigger_ = static_cast<size_t>(limit);
        ids_ = ids;
        count_ = 0;
        floor_ = floor;
    }

    float floor() const { return floor_; }
    // Hits that are missing until there is a floor; 0 when there is one.
    int64_t missing() const { return count_ < limit_ ? static_cast<int64_t>(limit_ - count_) : 0; }
    const uint64_t* hits() const { return hits_.data(); }
    int64_t count() const { return static_cast<int64_t>(count_); }

    // Room for `more` hits behind the ones there are; `grow` says how many were written.
    uint64_t* tail(int64_t more) {
        const size_t needed = count_ + static_cast<size_t>(more);
        if (hits_.size() < needed) hits_.resize(needed + needed / 2);
        return hits_.data() + count_;
    }

    void grow(int64_t written) {
        count_ += static_cast<size_t>(written);
        if (count_ >= trigger_) cut();
    }

    void merge(const TopCandidates& other) {
        std::copy_n(other.hits(), other.count(), tail(other.count()));
        count_ += other.count_;
    }

    // Drops all but the best `limit`, in any order.
    void cut() {
        if (count_ < limit_ || (count_ == limit_ && trigger_ > limit_)) return;
        trigger_ = limit_ + std::max(limit_, kSlack);
        if (limit_ > 0) {
            if (count_ > limit_) partition();
            const auto begin = hits_.begin(), end = begin + static_cast<int64_t>(count_);
            const auto middle = begin + static_cast<int64_t>(limit_);
            const uint32_t key = key_of(*std::min_element(begin, middle));
            floor_ = score_of(key);
            if (ids_ != nullptr) settle_ties(begin, middle, end, key);
        }
        count_ = limit_;
    }

  private:
    using Iterator = std::vector<uint64_t>::iterator;

    static constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    // A cut costs some microseconds: small limits wait for at least this many more.
    static constexpr size_t kSlack = 64;

    // Moves the best `limit` to the front: Hoare's selection, its partitions without branches. Hits come in random
    // order, so that a branch on their comparison is mispredicted every other time.
    void partition() {
        if (spare_.size() < hits_.size()) spare_.resize(hits_.size());
        uint64_t* first = hits_.data();
        size_t count = count_, wanted = limit_;
        while (wanted > 0 && wanted < count) {
            const uint64_t pivot = median(first[0], first[count / 2], first[count - 1]);
            uint64_t* spare = spare_.data();
            size_t better = 0, others = 0;
            for (size_t i = 0; i < count; ++i) {
                const uint64_t hit = first[i];
                const bool is_better = hit > pivot;
                first[better] = hit;
                spare[others] = hit;
                better += is_better;
                others += !is_better;
            }
            std::copy_n(spare, others, first + better);
            if (wanted <= better) {
                count = better;
            } else if (others < count) {
                first += better, count = others, wanted -= better;
            } else {  // the pivot is the best of all: it goes to the front by itself
                std::iter_swap(first, std::find(first, first + count, pivot));
                first += 1, count -= 1, wanted -= 1;
            }
        }
    }

    static uint64_t median(uint64_t a, uint64_t b, uint64_t c) {
        return std::max(std::min(a, b), std::min(std::max(a, b), c));
    }

    // Selection went by score and row; where equal scores straddle the cut, ids decide which of them stay.
    void settle_ties(Iterator begin, Iterator middle, Iterator end, uint32_t key) const {
        const auto tied = [key](uint64_t hit) { return key_of(hit) == key; };
        const Iterator others = std::partition(middle, end, tied);
        if (others == middle) return;
        const Iterator first = std::partition(begin, middle, [&](uint64_t hit) { return !tied(hit); });
        std::nth_element(first, middle - 1, others, [this](uint64_t a, uint64_t b) { return better(a, b, ids_); });
    }

    size_t limit_ = 0, trigger_ = 0, count_ = 0;
    const int64_t* ids_ = nullptr;
    float floor_ = kMinusInfinity;
    std::vector<uint64_t> hits_, spare_;
};

}  // namespace silvertriton::cpu
