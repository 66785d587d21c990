// The plugin of Rescore. Two lanes a candidate.

#include "../rescore.h"
#include "numbers.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_plugin_rescore(const float* query, const uint16_t* vectors, const float* scales, const int32_t* rows,
                                const silvertriton::cuda::RescoreNumbers* numbers, int32_t batch, int32_t candidates,
                                float* scores) {
    using namespace silvertriton::cuda;
    run_rescore({query, {vectors, scales, numbers->rows, numbers->dims}, rows, batch, candidates, scores});
}
