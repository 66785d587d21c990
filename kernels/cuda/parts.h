// Parts of the scratch memory of a call.
#pragma once

#include <cstdint>

namespace silvertriton::cuda {

// Each 256-byte aligned; without memory they are counted only.
class Parts {
  public:
    explicit Parts(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

    template <typename T>
    T* take(int64_t count) {
        const int64_t at = bytes_;
        bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
        return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
    }
    int64_t bytes() const { return bytes_; }

  private:
    unsigned char* memory_;
    int64_t bytes_ = 0;
};

}  // namespace silvertriton::cuda
