// A call of a CUDA operator: device, stream and scratch memory are those of torch. Only where CUDA is compiled in
// (ST_CUDA, a text that names the targets).
#pragma once

#if defined(ST_CUDA)

#include <torch/csrc/stable/tensor.h>

#include "../cuda/operators.h"
#include "checks.h"

namespace silvertriton {

// The device of the tensors is current while this lives. Scratch memory goes back to torch's allocator at its end,
// which gives it to later work of the same stream only.
class CudaCall {
  public:
    CudaCall(const Checks& checks, int64_t scratch_bytes);
    ~CudaCall();
    CudaCall(const CudaCall&) = delete;
    CudaCall& operator=(const CudaCall&) = delete;

    cuda::Work work() const { return {stream_, scratch_.mutable_data_ptr()}; }

  private:
    int32_t device_, device_before_;
    void* stream_;
    torch::stable::Tensor scratch_;
};

// kernels/cuda/device.cu
int32_t current_cuda_device();
void set_cuda_device(int32_t index);

}  // namespace silvertriton

#endif
