// Parts of the scratch memory of a call.
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton::cuda {

// Each 256-byte aligned; without memory they are counted only.
class Parts {
  public:
    ST_HOST_DEVICE explicit Parts(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

    template <typename T>
    ST_HOST_DEVICE T* take(int64_t count) {
        const int64_t at = bytes_;
        bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
        return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
    }
    ST_HOST_DEVICE int64_t bytes() const { return bytes_; }

  private:
    unsigned char* memory_;
    int64_t bytes_ = 0;
};

}  // namespace silvertriton::cuda
