// Binds kernels/cpu/parallel.h to torch's thread pool.

#include "parallel.h"

#include <torch/csrc/stable/ops.h>

namespace silvertriton {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(0, count, grain, body);
}

int64_t thread_count() {
    return torch::stable::get_num_threads();
}

}  // namespace silvertriton
