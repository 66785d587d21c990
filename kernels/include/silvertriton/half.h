// float16 to float32 without an instruction for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "silvertriton/layout.h"

namespace silvertriton {

// Exact for every finite half, subnormals included.
ST_HOST_DEVICE inline float from_half(uint16_t half) {
    const uint32_t magnitude = half & 0x7fffu;
    const uint32_t bits = (magnitude << 13) + (112u << 23);
    float normal;
    memcpy(&normal, &bits, sizeof normal);
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const float value = magnitude < 0x400u ? subnormal : normal;
    return half & 0x8000u ? -value : value;
}

}  // namespace silvertriton
