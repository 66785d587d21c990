// Binds kernels/cpu/parallel.h to torch's thread pool.

#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace silvertriton {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    // Kept here: of an exception that passes through torch's C interface only that there was one is left.
    std::mutex mutex;
    std::exception_ptr failure;
    int64_t failed = count;
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
        try {
            body(begin, end);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (begin < failed) {
                failed = begin;
                failure = std::current_exception();
            }
        }
    });
    if (failure != nullptr) std::rethrow_exception(failure);
}

int64_t thread_count() {
    return torch::stable::get_num_threads();
}

}  // namespace silvertriton
