// A phase of the wide search: which clusters each request wants scanned. A block a request.

#include "search_kernels.h"
#include "wide.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_choose(const __grid_constant__ silvertriton::cuda::SearchRun run, int32_t phase) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ SearchShared shared;
    for (int64_t b = blockIdx.x; b < run.requests.batch; b += gridDim.x) {
        if (run.results.status[b] == kStatusOk) {
            Choice choice(run, b, shared);
            if (phase == 0) {
                choice.start();
            } else {
                choice.go_on(phase);
            }
        }
        __syncthreads();
    }
}

namespace silvertriton::cuda {

void launch_choose(Stream stream, const SearchRun& run, int32_t phase) {
    launch("choose", silvertriton_choose, dim3(static_cast<unsigned>(run.requests.batch)), kRequestThreads, stream, run,
           phase);
}

}  // namespace silvertriton::cuda
