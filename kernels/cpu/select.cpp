// select: the last selection, on final values, with what belongs to the chosen.

#include <algorithm>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/order.h"
#include "write_selected.h"

namespace silvertriton::cpu {

void select(const Scored& scored, const SelectResults& results) {
    parallel_for(scored.batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> found;
        for (int64_t b = begin; b < end; ++b) {
            const int64_t first = b * scored.candidates;
            const int64_t* row_ids = scored.ids + first;
            found.clear();
            for (int64_t m = 0; scored.status[b] == kStatusOk && m < scored.candidates; ++m)
                if (row_ids[m] != -1) found.push_back(packed_hit(scored.values[first + m], static_cast<int32_t>(m)));
            const int64_t count = std::min(scored.k, static_cast<int64_t>(found.size()));
            const auto order = [row_ids](uint64_t x, uint64_t y) { return better(x, y, row_ids); };
            // Mostly they come in order already: the search returns the best first.
            if (!std::is_sorted(found.begin(), found.end(), order))
                std::partial_sort(found.begin(), found.begin() + count, found.end(), order);
            write_selected(scored, b, count, [&](int64_t i) { return row_of(found[static_cast<size_t>(i)]); }, results);
        }
    });
}

}  // namespace silvertriton::cpu
