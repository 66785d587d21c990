// Runs a plan over mask words, chunk by chunk, so that the sets on the stack stay in the first-level cache and the
// bitmaps stream through once; a set that is just one bitmap is used where it lies.
#pragma once

#include <memory>
#include <vector>

#include "filter_plan.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton::cpu {

// 2 KiB a set: all 16 fill 32 KiB, the common three or four leave room for the bitmaps that stream by.
constexpr int64_t kChunkWords = 512;

// What a plan needs to run over masks: the flips of its ranges, made once for the whole catalogue. A program of many
// ranges would let a request ask for any amount of memory, so it runs with one chunk, the catalogue, and makes them on
// the stack as it goes.
class MaskPlan {
  public:
    MaskPlan(const Plan& plan, const FilterIndex& index);

    const Plan& plan() const { return plan_; }
    // Whether it has to run over the whole catalogue at once.
    bool whole() const { return static_cast<int64_t>(plan_.ranges.size()) > kPreparedRanges; }
    const uint32_t* flips(int64_t range) const { return flips_.get() + range * blocks_; }

  private:
    static constexpr int64_t kPreparedRanges = 16;

    const Plan& plan_;
    const int64_t blocks_;
    std::unique_ptr<uint32_t[]> flips_;  // [ranges, NB]
};

// Writes words [begin, end): the rows that hold an item and satisfy the plan. Returns how many there are. Throws
// InconsistentIndex.
int64_t write_mask(const MaskPlan& plan, const FilterIndex& index, const InstructionSet& isa, int64_t begin,
                   int64_t end, uint32_t* words);

}  // namespace silvertriton::cpu
