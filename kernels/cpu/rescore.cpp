// rescore: candidates against their fp16 vectors, so that the int8 codes never cap recall.

#include <algorithm>
#include <limits>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/instruction_set.h"

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
    parallel_for(batch * candidates, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = rows[i];
            scores[i] = row < 0 || row >= vectors.rows
                            ? -std::numeric_limits<float>::infinity()
                            : isa.dot_row(vectors.vectors + row * dims, padded.data() + i / candidates * width, dims) *
                                  vectors.scales[row];
        }
    });
}

}  // namespace silvertriton::cpu
