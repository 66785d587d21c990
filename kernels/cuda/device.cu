// The device that is current in this thread, without a header of CUDA for its callers (kernels/torch/cuda_call.h).

#include "device.h"

namespace silvertriton {

int32_t current_cuda_device() {
    int device = 0;
    cuda::check("cudaGetDevice", cudaGetDevice(&device));
    return device;
}

void set_cuda_device(int32_t index) {
    cuda::check("cudaSetDevice", cudaSetDevice(index));
}

}  // namespace silvertriton
