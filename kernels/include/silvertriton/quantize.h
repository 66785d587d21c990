// Quantisation of queries: int8 codes with one scale, as rows have.
#pragma once

#include <cmath>
#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton {

// Components that are not finite count as 0: the network refuses such a query, the kernels only must not trip over it.
ST_HOST_DEVICE inline float finite_or_zero(float component) {
    return fabsf(component) <= 3.402823466e38f ? component : 0.0f;
}

// Scale of a vector whose largest magnitude is `largest`; 0 when every component is 0 or too small to be divided.
ST_HOST_DEVICE inline float scale_of(float largest) {
    return largest / 127.0f;
}

// A component in units of the scale. Clamped: with a scale among the subnormals the quotient can pass 127.
ST_HOST_DEVICE inline float in_scale(float component, float scale) {
    if (!(scale > 0.0f)) return 0.0f;
    const float units = component / scale;
    return units > 127.0f ? 127.0f : units < -127.0f ? -127.0f : units;
}

// Round half to even, the default rounding mode of IEEE 754.
ST_HOST_DEVICE inline int8_t code_of(float units) {
    return static_cast<int8_t>(rintf(units));
}

}  // namespace silvertriton
