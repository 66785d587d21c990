// lookup: places of keys in a vocabulary.

#include <algorithm>

#include "operators.h"
#include "parallel.h"

namespace silvertriton::cpu {
namespace {

constexpr int64_t kTogether = 16;  // a search waits for memory at almost every step; so many wait together
constexpr int64_t kGrain = 1024;

}  // namespace

void lookup(const int64_t* keys, int64_t count, const int64_t* asked, int64_t asked_count, int64_t* slots) {
    if (count == 0) {
        std::fill_n(slots, asked_count, int64_t{0});
        return;
    }
    parallel_for(asked_count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t start = begin; start < end; start += kTogether) {
            const int64_t together = std::min(kTogether, end - start);
            int64_t first[kTogether] = {};
            for (int64_t size = count, half; size > 1; size -= half) {
                half = size / 2;
                for (int64_t i = 0; i < together; ++i) first[i] += keys[first[i] + half] <= asked[start + i] ? half : 0;
            }
            for (int64_t i = 0; i < together; ++i)
                slots[start + i] = keys[first[i]] == asked[start + i] ? first[i] + 1 : 0;
        }
    });
}

}  // namespace silvertriton::cpu
