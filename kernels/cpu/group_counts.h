// How many of the chosen belong to each group.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace silvertriton::cpu {

// A hash table with open addressing: a catalogue may have millions of groups, the results of a request have few.
class GroupCounts {
  public:
    GroupCounts() : slots_(kFewest) {}

    void clear() {
        std::fill(slots_.begin(), slots_.end(), Slot{});
        used_ = 0;
    }

    int32_t of(int32_t group) const { return slots_[find(group)].count; }

    // `group` is not negative.
    void add(int32_t group) {
        Slot& slot = slots_[find(group)];
        if (slot.group == group) {
            slot.count += 1;
            return;
        }
        slot = {group, 1};
        used_ += 1;
        if (2 * used_ > slots_.size()) grow();
    }

  private:
    struct Slot {
        int32_t group = -1;
        int32_t count = 0;
    };
    static constexpr size_t kFewest = 256;

    // Where the group is, or would be. Half of the slots are free, so that the search ends.
    size_t find(int32_t group) const {
        const size_t mask = slots_.size() - 1;
        size_t at = (static_cast<uint32_t>(group) * 2654435769u >> 8) & mask;  // 2^32 / golden ratio, as Knuth has it
        while (slots_[at].group != group && slots_[at].group >= 0) at = (at + 1) & mask;
        return at;
    }

    void grow() {
        std::vector<Slot> before(2 * slots_.size());
        before.swap(slots_);
        for (const Slot& slot : before)
            if (slot.group >= 0) slots_[find(slot.group)] = slot;
    }

    std::vector<Slot> slots_;  // a power of two of them
    size_t used_ = 0;
};

}  // namespace silvertriton::cpu
