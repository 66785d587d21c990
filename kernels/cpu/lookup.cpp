// lookup: places of keys in a vocabulary.

#include <algorithm>

#include "find_items.h"
#include "operators.h"
#include "parallel.h"

namespace silvertriton::cpu {
namespace {

constexpr int64_t kGrain = 1024;

}  // namespace

void lookup(const int64_t* keys, int64_t count, const int64_t* asked, int64_t asked_count, int64_t* slots) {
    if (count == 0) {
        std::fill_n(slots, asked_count, int64_t{0});
        return;
    }
    parallel_for(asked_count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t start = begin; start < end; start += kSearchedTogether) {
            const int64_t together = std::min(kSearchedTogether, end - start);
            int64_t first[kSearchedTogether];
            search_together(count, [keys](int64_t place) { return keys[place]; }, asked + start, together, first);
            for (int64_t i = 0; i < together; ++i)
                slots[start + i] = keys[first[i]] == asked[start + i] ? first[i] + 1 : 0;
        }
    });
}

}  // namespace silvertriton::cpu
