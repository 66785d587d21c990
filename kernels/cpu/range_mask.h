// The mask of a range over the whole catalogue: what two cumulative bitmaps differ in, and the rows between those and
// the exact ends.
#pragma once

#include "filter_plan.h"

namespace silvertriton::cpu {

// The rows of a range are those of an odd number of: ends[0], ends[1] (masks of the index, null: no row), the flips.
class RangeMask {
  public:
    RangeMask(const FilterIndex& index, const Range& range);

    const uint32_t* const* begin() const { return ends_; }
    const uint32_t* const* end() const { return ends_ + 2; }

    // Writes [NB] words. Beside padding and rows without a value, at most a bucket's rows are touched one by one, half
    // a bucket's at each end. Throws InconsistentIndex.
    void write_flips(uint32_t* flips) const;

  private:
    const FilterIndex& index_;
    const Range& range_;
    const uint32_t* ends_[2] = {nullptr, nullptr};
    int64_t low_ = 0, high_ = 0;  // positions that the ends stand for; equal: the flips are all rows of the range
    bool known_ = false;          // the upper end is that of all rows with a value, for which there is no bitmap
};

}  // namespace silvertriton::cpu
