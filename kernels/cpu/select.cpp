// select: the last selection, on final values, with what belongs to the chosen.

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/order.h"

namespace silvertriton::cpu {

void select(const float* values, const int64_t* ids, const float* tasks, const int32_t* status, int64_t batch,
            int64_t candidates, int64_t task_count, int64_t k, const SelectResults& results) {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> found;
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * candidates;
            const int64_t* row_ids = ids + first;
            found.clear();
            for (int64_t m = 0; status[b] == kStatusOk && m < candidates; ++m)
                if (row_ids[m] != -1) found.push_back(packed_hit(values[first + m], static_cast<int32_t>(m)));
            const int64_t count = std::min(k, static_cast<int64_t>(found.size()));
            const auto order = [row_ids](uint64_t x, uint64_t y) { return better(x, y, row_ids); };
            // Mostly they come in order already: the search returns the best first.
            if (!std::is_sorted(found.begin(), found.end(), order))
                std::partial_sort(found.begin(), found.begin() + count, found.end(), order);
            results.count[b] = static_cast<int32_t>(count);
            for (int64_t i = 0; i < k; ++i) {
                const int64_t from = i < count ? first + row_of(found[i]) : -1, to = b * k + i;
                results.ids[to] = from < 0 ? -1 : ids[from];
                results.scores[to] = from < 0 ? kMinusInfinity : values[from];
                for (int64_t t = 0; t < task_count; ++t)
                    results.tasks[to * task_count + t] = from < 0 ? kMinusInfinity : tasks[from * task_count + t];
            }
        }
    });
}

}  // namespace silvertriton::cpu
