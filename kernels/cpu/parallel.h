// Threads, without a torch header: kernels/torch binds these to torch's pool, so that the CPU operators share the
// threads that the server was given.
#pragma once

#include <cstdint>
#include <functional>

namespace silvertriton {

// Calls body(begin, end) on disjoint ranges that cover [0, count), on one thread or several; a range has at least
// `grain` elements where that many are left. Throws what leaves `body` once all have ended, of several exceptions that
// of the lowest range: where `body` goes through its elements in order, that of the first element, whatever the
// threads.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

int64_t thread_count();

}  // namespace silvertriton
