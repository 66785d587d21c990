// The plugins' kernels in emulation.h, and a way to start one as TensorRT does: with pointers and int32 numbers.

#include "../../../kernels/cuda/plugins/neighbour_scores.cu"
#include "../../../kernels/cuda/plugins/rescore.cu"
#include "../../../kernels/cuda/plugins/resolve_weights.cu"
#include "../../../kernels/cuda/plugins/search.cu"
#include "../../../kernels/cuda/plugins/select.cu"
#include "../../../kernels/cuda/plugins/select_diverse.cu"

#include <string>
#include <utility>

namespace {

template <typename T>
T argument(int64_t value) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(value);
    } else {
        static_assert(std::is_same_v<T, int32_t>);
        return static_cast<int32_t>(value);
    }
}

template <typename... Parameters, size_t... I>
bool start(const char* name, void (*kernel)(Parameters...), const int64_t* given, int64_t count, unsigned blocks,
           int threads, std::index_sequence<I...>) {
    if (count != sizeof...(Parameters)) return false;
    silvertriton::cuda::launch(name, kernel, dim3(blocks), threads, nullptr, argument<Parameters>(given[I])...);
    return true;
}

template <typename... Parameters>
bool start(const char* name, void (*kernel)(Parameters...), const int64_t* given, int64_t count, unsigned blocks,
           int threads) {
    return start(name, kernel, given, count, blocks, threads, std::index_sequence_for<Parameters...>());
}

}  // namespace

// False where it takes another number of arguments, or there is none of this name.
extern "C" __attribute__((visibility("default"))) bool st_plugin(const char* entry, const int64_t* given, int64_t count,
                                                                 unsigned blocks, int threads) {
#define ST_PLUGIN(name) \
    if (entry == std::string(#name)) return start(#name, name, given, count, blocks, threads)
    ST_PLUGIN(silvertriton_plugin_search);
    ST_PLUGIN(silvertriton_plugin_rescore);
    ST_PLUGIN(silvertriton_plugin_resolve_weights);
    ST_PLUGIN(silvertriton_plugin_neighbour_scores);
    ST_PLUGIN(silvertriton_plugin_select);
    ST_PLUGIN(silvertriton_plugin_select_diverse);
#undef ST_PLUGIN
    return false;
}
