// The first step of a search: requests made ready for it. A block a request.

#include "prepare.h"
#include "search_kernels.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_prepare(const __grid_constant__ silvertriton::cuda::SearchRun run) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    __shared__ PrepareShared shared;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * thread_count() + thread_of_block(); i < run.wide.cleared_words;
         i += static_cast<int64_t>(gridDim.x) * thread_count())
        run.wide.cleared[i] = 0;
    for (int64_t b = blockIdx.x; b < run.requests.batch; b += gridDim.x) {
        prepare_request(run, b, shared);
        if (thread_of_block() == 0) run.filter.call.passing[b] = 0;
        __syncthreads();
    }
}

namespace silvertriton::cuda {

void launch_prepare(Stream stream, const SearchRun& run) {
    launch("prepare", silvertriton_prepare, dim3(static_cast<unsigned>(run.requests.batch)), kRequestThreads, stream,
           run);
}

}  // namespace silvertriton::cuda
