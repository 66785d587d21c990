// Layers of a network and rows of halves, once for each instruction set that includes this file with ST_TARGET, its
// function attribute, ST_DENSE_ROWS and ST_DENSE_VECTORS, the tile whose sums its registers hold, and ST_HALVES(halves,
// scale, floats), which turns sixteen halves into floats. Vectors are the compiler's own: sixteen lanes, however many
// registers those take.

using Lanes = float __attribute__((vector_size(64)));

template <int kRows, int kVectors>
ST_TARGET inline void add_tile(const float* inputs, int64_t stride, const float* weights, int64_t depth, int64_t width,
                               float* sums) {
    Lanes tile[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) std::memcpy(&tile[r][v], sums + r * width + 16 * v, sizeof(Lanes));
    for (int64_t k = 0; k < depth; ++k) {
        Lanes factors[kVectors];
        for (int v = 0; v < kVectors; ++v) std::memcpy(&factors[v], weights + k * width + 16 * v, sizeof(Lanes));
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v) tile[r][v] += inputs[r * stride + k] * factors[v];
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) std::memcpy(sums + r * width + 16 * v, &tile[r][v], sizeof(Lanes));
}

template <int kRows>
ST_TARGET inline void add_rows(const float* inputs, int64_t stride, const float* weights, int64_t depth, int64_t width,
                               float* sums) {
    int64_t n = 0;
    for (; n + 16 * ST_DENSE_VECTORS <= width; n += 16 * ST_DENSE_VECTORS)
        add_tile<kRows, ST_DENSE_VECTORS>(inputs, stride, weights + n, depth, width, sums + n);
    for (; n < width; n += 16) add_tile<kRows, 1>(inputs, stride, weights + n, depth, width, sums + n);
}

ST_TARGET void add_layer(const float* inputs, int64_t rows, int64_t stride, const float* weights, int64_t depth,
                         int64_t width, float* sums) {
    int64_t r = 0;
    for (; r + ST_DENSE_ROWS <= rows; r += ST_DENSE_ROWS)
        add_rows<ST_DENSE_ROWS>(inputs + r * stride, stride, weights, depth, width, sums + r * width);
    for (; r < rows; ++r) add_rows<1>(inputs + r * stride, stride, weights, depth, width, sums + r * width);
}

ST_TARGET void from_halves(const uint16_t* row, int64_t count, float scale, float* floats) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) ST_HALVES(row + i, scale, floats + i);
    if (i == count) return;
    uint16_t last[16] = {};
    float values[16];
    std::memcpy(last, row + i, sizeof(uint16_t) * static_cast<size_t>(count - i));
    ST_HALVES(last, scale, values);
    std::memcpy(floats + i, values, sizeof(float) * static_cast<size_t>(count - i));
}
