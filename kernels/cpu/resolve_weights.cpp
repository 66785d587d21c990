// resolve_weights: the value model's weights of each request. One operator, because as seven of torch's own it took as
// long as a small search.

#include <cmath>

#include "operators.h"

namespace silvertriton::cpu {

void resolve_weights(const float* asked, const float* defaults, int64_t batch, int64_t tasks, float* weights,
                     int32_t* status) {
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t t = 0; t < tasks; ++t) {
            const float weight = asked[b * tasks + t];
            weights[b * tasks + t] = std::isfinite(weight) ? weight : defaults[t];
            if (std::isinf(weight)) status[b] = first_status(status[b], kStatusTaskWeights);
        }
    }
}

}  // namespace silvertriton::cpu
