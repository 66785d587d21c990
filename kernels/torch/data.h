// What tensors hold, as the kernels take it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>

namespace silvertriton {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

template <typename T>
const T* in(const torch::stable::Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* out(const torch::stable::Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace silvertriton
