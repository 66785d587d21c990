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

// Bytes of scratch memory that a plugin's kernel lays out, for sizes and numbers in the order of its definition.
extern "C" __attribute__((visibility("default"))) int64_t st_plugin_scratch(const char* operation, const int64_t* sizes,
                                                                            const int64_t* numbers) {
    using namespace silvertriton;
    using namespace silvertriton::cuda;
    Parts parts(nullptr);
    if (operation == std::string("search")) {
        const auto& n = *reinterpret_cast<const SearchNumbers*>(numbers);
        SearchRequests requests{};
        requests.batch = sizes[0];
        requests.program_width = sizes[1];
        requests.exclude_width = sizes[2];
        SearchIndex index{};
        const float projection = 0.0f;
        index.items.dims = n.code_dims;
        index.vectors.dims = n.dims;
        index.projection = n.projects != 0 ? &projection : nullptr;
        index.filters.blocks = n.blocks;
        index.filters.clusters = n.clusters;
        plan_search(parts, requests, index, {n.probes, n.candidates, n.max_candidates, n.exact_rows}, {}, 0);
    } else if (operation == std::string("neighbour_scores")) {
        plan_neighbour_scores(parts, sizes[0], sizes[2], sizes[1]);
    } else if (operation == std::string("select")) {
        return sizes[0] * power_of_two(sizes[1]) * 8;
    } else if (operation == std::string("select_diverse")) {
        const auto& n = *reinterpret_cast<const DiverseNumbers*>(numbers);
        Scored scored{};
        scored.batch = sizes[0];
        scored.candidates = sizes[1];
        scored.k = n.k;
        plan_select_diverse(parts, scored, {nullptr, nullptr, n.rows, n.dims}, {0.5f, 0.5f});
    }
    return parts.bytes();
}
