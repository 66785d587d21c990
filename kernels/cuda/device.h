// What kernels need beside the language: the CUDA toolkit's headers, or those of the emulation in which the tests run
// every kernel on a CPU (tests/kernels/cuda/emulation.h). Kernels use nothing else of either.
#pragma once

#include <cstdint>

#if defined(ST_EMULATION)

#include "emulation.h"

#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

// Before a loop that is not unrolled.
#define ST_ROLLED _Pragma("unroll 1")

// What tests want to know to have been reached.
#define ST_REACHED(what) static_cast<void>(0)

namespace silvertriton::cuda {

using Stream = cudaStream_t;

inline void check(const char* what, cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error("silvertriton: " + std::string(what) + ": CUDA says " + cudaGetErrorString(error));
}

// Starts a kernel on the stream and comes back at once.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, Stream stream,
            const Arguments&... arguments) {
    if (grid.x == 0 || grid.y == 0) return;
    kernel<<<grid, threads, 0, stream>>>(arguments...);
    check(name, cudaGetLastError());
}

inline int64_t multiprocessors() {
    int device = 0, count = 0;
    check("cudaGetDevice", cudaGetDevice(&device));
    check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

// Blocks of an index from which on a search is spread over the device: one of fewer rows takes less time with fewer
// kernels.
inline int64_t wide_blocks() {
    return 1024;
}

// c[16 x 8] += a[16 x 32] * b[32 x 8], int8 into int32, by the whole warp (mma.m16n8k32, PTX ISA 9.7.14.5.8). With g =
// lane / 4 and t = lane % 4, each register of four codes: a[0] row g, columns 4t..; a[1] row g + 8; a[2], a[3] the same
// 16 columns on; b[0] column g, rows 4t..; b[1] 16 rows on; c[0], c[1] row g, columns 2t, 2t + 1; c[2], c[3] row g + 8.
__device__ __forceinline__ void mma_16x8x32(int32_t (&c)[4], const int32_t (&a)[4], const int32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// float16 to float32, exactly.
__device__ __forceinline__ float float_of_half(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

}  // namespace silvertriton::cuda

#endif
