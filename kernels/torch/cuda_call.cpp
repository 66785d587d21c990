#include "cuda_call.h"

#if defined(ST_CUDA)

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <stdexcept>

#include "empty.h"

namespace silvertriton {
namespace {

#if defined(ST_EMULATION)

void* current_stream(int32_t) {
    return nullptr;
}

#else

using GetCurrentStream = AOTITorchError (*)(int32_t, void**);

// The function is in libtorch_cuda, which this library cannot link to: it has to load where torch has no CUDA. Where
// there is a CUDA tensor, it is loaded.
GetCurrentStream find_current_stream() {
    constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
    void* found = dlsym(RTLD_DEFAULT, kName);
    if (found == nullptr) {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        if (library != nullptr) found = dlsym(library, kName);
    }
    if (found == nullptr)
        throw std::runtime_error(
            "silvertriton: no aoti_torch_get_current_cuda_stream in this process; install a torch that is built for "
            "CUDA");
    return reinterpret_cast<GetCurrentStream>(found);
}

void* current_stream(int32_t device) {
    static const GetCurrentStream get = find_current_stream();
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(get(device, &stream));
    return stream;
}

#endif

}  // namespace

CudaCall::CudaCall(const Checks& checks, int64_t scratch_bytes)
    : device_(checks.device_index()),
      device_before_(current_cuda_device()),
      stream_(current_stream(device_)),
      scratch_(empty(checks, {std::max<int64_t>((scratch_bytes + 3) / 4, 1)}, torch::headeronly::ScalarType::Int)) {
    if (device_ != device_before_) set_cuda_device(device_);
}

CudaCall::~CudaCall() {
    if (device_ == device_before_) return;
    try {
        set_cuda_device(device_before_);
    } catch (const std::exception&) {  // the next call of CUDA will say so
    }
}

}  // namespace silvertriton

#endif
