// top_k: the last selection, on final scores.

#include <algorithm>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/order.h"

namespace silvertriton::cpu {

void top_k(const float* scores, const int64_t* ids, int64_t batch, int64_t candidates, int64_t k, int64_t* positions) {
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<Candidate> found;
        for (int64_t b = begin; b < end; ++b) {
            const int64_t* row_ids = ids + b * candidates;
            found.clear();
            for (int64_t m = 0; m < candidates; ++m)
                if (row_ids[m] != -1) found.push_back({sortable(scores[b * candidates + m]), static_cast<int32_t>(m)});
            const auto order = [row_ids](const Candidate& x, const Candidate& y) { return better(x, y, row_ids); };
            const int64_t count = std::min(k, static_cast<int64_t>(found.size()));
            std::partial_sort(found.begin(), found.begin() + count, found.end(), order);
            int64_t* out = positions + b * k;
            for (int64_t i = 0; i < count; ++i) out[i] = found[static_cast<size_t>(i)].row;
            std::fill(out + count, out + k, -1);
        }
    });
}

}  // namespace silvertriton::cpu
