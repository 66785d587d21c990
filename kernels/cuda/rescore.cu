// rescore: candidates against their fp16 vectors.

#include "device.h"
#include "dot.h"
#include "operators.h"
#include "silvertriton/order.h"

namespace silvertriton::cuda {

struct RescoreCall {
    const float* query;   // [B, D]
    RowVectors vectors;   // [R, D]
    const int32_t* rows;  // [B, M]
    int64_t batch, candidates;
    float* scores;  // [B, M]
};

}  // namespace silvertriton::cuda

// Two lanes a candidate, any number of blocks.
extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_rescore(silvertriton::cuda::RescoreCall call) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    constexpr int64_t kOfBlock = kThreads / 2;
    const int64_t count = call.batch * call.candidates;
    for (int64_t base = blockIdx.x * kOfBlock; base < count; base += gridDim.x * kOfBlock) {
        const int64_t at = base + thread_of_block() / 2;
        const int32_t row = at < count ? call.rows[at] : -1;
        const bool exists = row >= 0 && row < call.vectors.rows;
        const int64_t dims = call.vectors.dims;
        const float product = dot_row(call.vectors.vectors + (exists ? row * dims : 0),
                                      call.query + (exists ? at / call.candidates * dims : 0), exists ? dims : 0);
        if (at >= count || lane_of_thread() % 2 != 0) continue;
        const uint32_t key = exists ? sortable(product * call.vectors.scales[row]) : kMinusInfinityKey;
        call.scores[at] = score_of(key);
    }
}

namespace silvertriton::cuda {

void rescore(const Work& work, const float* query, const RowVectors& vectors, const int32_t* rows, int64_t batch,
             int64_t candidates, float* scores) {
    const int64_t blocks = (batch * candidates + kThreads / 2 - 1) / (kThreads / 2);
    launch("rescore", silvertriton_rescore, dim3(static_cast<unsigned>(blocks < 65535 ? blocks : 65535)), kThreads,
           static_cast<Stream>(work.stream), RescoreCall{query, vectors, rows, batch, candidates, scores});
}

}  // namespace silvertriton::cuda
