// Tensors for the results of an operator.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>

#include "checks.h"

namespace silvertriton {

inline int32_t dtype_code(torch::headeronly::ScalarType dtype) {
    switch (dtype) {
        case torch::headeronly::ScalarType::Int:
            return aoti_torch_dtype_int32();
        case torch::headeronly::ScalarType::Long:
            return aoti_torch_dtype_int64();
        default:
            return aoti_torch_dtype_float32();
    }
}

// By the shim's own function: torch::stable::empty asks the dispatcher by name, which for the eleven outputs of a small
// search took as long as the search.
inline torch::stable::Tensor empty(const Checks& checks, std::initializer_list<int64_t> sizes,
                                   torch::headeronly::ScalarType dtype) {
    int64_t strides[4] = {}, stride = 1;
    for (size_t axis = sizes.size(); axis-- > 0;) {
        strides[axis] = stride;
        stride *= std::max<int64_t>(sizes.begin()[axis], 1);
    }
#if defined(ST_EMULATION)
    const bool on_cuda = false;
#else
    const bool on_cuda = checks.on_cuda();
#endif
    const int32_t type = on_cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                           dtype_code(dtype), type, on_cuda ? checks.device_index() : 0,
                                                           &handle));
    torch::stable::Tensor tensor(handle);
#if defined(ST_EMULATION)
    std::fill_n(static_cast<char*>(tensor.mutable_data_ptr()), tensor.numel() * tensor.element_size(), char{0x5a});
#endif
    return tensor;
}

}  // namespace silvertriton
