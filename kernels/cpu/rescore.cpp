// rescore: candidates against their fp16 vectors, so that the int8 codes never cap recall.

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "rows.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/order.h"

namespace silvertriton::cpu {
namespace {

// Below this many rows (some microseconds) a second thread costs more than it saves.
constexpr int64_t kGrain = 256;

}  // namespace

void rescore(const float* query, const RowVectors& vectors, const int32_t* rows, int64_t batch, int64_t candidates,
             float* scores) {
    const InstructionSet& isa = instruction_set();
    const int64_t dims = vectors.dims;
    std::vector<float> padded;
    const int64_t width = (dims + 15) / 16 * 16;
    padded.resize(static_cast<size_t>(batch * width));
    for (int64_t b = 0; b < batch; ++b) std::copy_n(query + b * dims, dims, padded.data() + b * width);
    const auto exists = [&](int64_t i) { return rows[i] >= 0 && rows[i] < vectors.rows; };
    parallel_for(batch * candidates, kGrain, [&](int64_t begin, int64_t end) {
        for_each_row(
            vectors, end - begin, [&](int64_t i) { return exists(begin + i) ? rows[begin + i] : int64_t{0}; },
            [&](int64_t i, int64_t row) {
                const int64_t at = begin + i;
                scores[at] = -std::numeric_limits<float>::infinity();
                if (!exists(at)) return;
                const float* of_request = padded.data() + at / candidates * width;
                const float score = isa.dot_row(vectors.vectors + row * dims, of_request, dims) * vectors.scales[row];
                scores[at] = score_of(sortable(score));  // as search has it: no NaN, no -0
            });
    });
}

}  // namespace silvertriton::cpu
