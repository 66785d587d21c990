// select: the last selection, on final values, with what belongs to the chosen.

#include "operators.h"
#include "select_best.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kRequestThreads)
    silvertriton_select(silvertriton::cuda::SelectCall call) {
    using namespace silvertriton::cuda;
    __shared__ SelectBestShared shared;
    run_select(call, shared);
}

namespace silvertriton::cuda {

int64_t select_bytes(const Scored& scored) {
    return scored.batch * power_of_two(scored.candidates) * 8;
}

void select(const Work& work, const Scored& scored, const SelectResults& results) {
    launch("select", silvertriton_select, dim3(static_cast<unsigned>(scored.batch)), kRequestThreads,
           static_cast<Stream>(work.stream),
           SelectCall{scored, results, static_cast<uint64_t*>(work.scratch), power_of_two(scored.candidates)});
}

}  // namespace silvertriton::cuda
