// rescore: candidates against their fp16 vectors.

#include "rescore.h"

#include "operators.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_rescore(silvertriton::cuda::RescoreCall call) {
    silvertriton::cuda::run_rescore(call);
}

namespace silvertriton::cuda {

void rescore(const Work& work, const float* query, const RowVectors& vectors, const int32_t* rows, int64_t batch,
             int64_t candidates, float* scores) {
    const int64_t blocks = (batch * candidates + kThreads / 2 - 1) / (kThreads / 2);
    launch("rescore", silvertriton_rescore, dim3(static_cast<unsigned>(blocks < 65535 ? blocks : 65535)), kThreads,
           static_cast<Stream>(work.stream), RescoreCall{query, vectors, rows, batch, candidates, scores});
}

}  // namespace silvertriton::cuda
