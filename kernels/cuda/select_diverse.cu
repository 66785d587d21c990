// select_diverse: the last selection under rules.

#include "select_diverse.h"

#include "operators.h"

extern "C" __global__ void __launch_bounds__(silvertriton::cuda::kThreads)
    silvertriton_select_diverse(silvertriton::cuda::DiverseCall call) {
    using namespace silvertriton::cuda;
    __shared__ DiverseShared shared;
    run_select_diverse(call, shared);
}

namespace silvertriton::cuda {

int64_t select_diverse_bytes(const Scored& scored, const RowVectors& units, const Relevance& relevance) {
    Parts parts(nullptr);
    plan_select_diverse(parts, scored, units, relevance);
    return parts.bytes();
}

void select_diverse(const Work& work, const Scored& scored, const int32_t* rows, const RowVectors& units,
                    const Groups& groups, const Relevance& relevance, const SelectResults& results) {
    Parts parts(work.scratch);
    DiverseCall call = plan_select_diverse(parts, scored, units, relevance);
    call.rows = rows;
    call.groups = groups;
    call.results = results;
    launch("select_diverse", silvertriton_select_diverse, dim3(static_cast<unsigned>(scored.batch)), kThreads,
           static_cast<Stream>(work.stream), call);
}

}  // namespace silvertriton::cuda
