#include "range_mask.h"

#include <algorithm>
#include <cstdlib>

namespace silvertriton::cpu {
namespace {

void flip_rows(const FilterIndex& index, const int32_t* first, const int32_t* last, uint32_t* mask) {
    const uint32_t rows = static_cast<uint32_t>(index.rows());
    for (; first < last; ++first) {
        const uint32_t row = static_cast<uint32_t>(*first);
        if (row >= rows)
            fail_inconsistent("number_rows", std::to_string(*first), "a row below " + std::to_string(rows));
        mask[row / 32] ^= 1u << (row % 32);
    }
}

// Writes all rows but those without a value.
void write_known(const FilterIndex& index, const Term& unknown, uint32_t* mask) {
    if (unknown.bitmap != nullptr) {
        for (int64_t w = 0; w < index.blocks; ++w) mask[w] = ~unknown.bitmap[w];
        return;
    }
    std::fill_n(mask, index.blocks, ~0u);
    for (const int32_t* at = unknown.first; at != unknown.last; ++at) {
        const uint32_t row = static_cast<uint32_t>(*at);
        if (row < static_cast<uint32_t>(index.rows())) mask[row / 32] &= ~(1u << (row % 32));
    }
}

}  // namespace

RangeMask::RangeMask(const FilterIndex& index, const Range& range) : index_(index), range_(range) {
    const int64_t known = index.number_known[range.number];
    const int64_t step = (known + index.buckets - 1) / index.buckets;
    // Boundary j covers the first min(j * step, known) rows; that of the last bucket all that have a value.
    const auto nearest = [&](int64_t position) {
        return step == 0 ? 0 : std::min((position + step / 2) / step, index.buckets);
    };
    const auto covered = [&](int64_t boundary) { return std::min(boundary * step, known); };
    const int64_t low = nearest(range.first), high = nearest(range.last);
    const int64_t to_fix = std::abs(range.first - covered(low)) + std::abs(range.last - covered(high));
    if (low >= high || range.last - range.first <= to_fix) return;
    low_ = covered(low);
    high_ = covered(high);
    known_ = high == index.buckets;
    const uint32_t* bitmaps = index.number_bitmaps + range.number * (index.buckets - 1) * index.blocks;
    if (low > 0) ends_[0] = bitmaps + (low - 1) * index.blocks;
    if (!known_) ends_[1] = bitmaps + (high - 1) * index.blocks;
}

void RangeMask::write_flips(uint32_t* flips) const {
    const int32_t* rows = index_.number_rows + range_.number * index_.rows();
    if (known_) {
        write_known(index_, range_.unknown, flips);
    } else {
        std::fill_n(flips, index_.blocks, 0u);
    }
    if (low_ == high_) {
        flip_rows(index_, rows + range_.first, rows + range_.last, flips);
        return;
    }
    const auto flip_between = [&](int64_t a, int64_t b) {
        flip_rows(index_, rows + std::min(a, b), rows + std::max(a, b), flips);
    };
    flip_between(range_.first, low_);
    flip_between(range_.last, high_);
}

}  // namespace silvertriton::cpu
