// rerank: the reranker of builder/network/rerank.py for some candidates at a time, so that what is gathered of them and
// what their layers give stays in the first-level cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "near_history.h"
#include "operators.h"
#include "parallel.h"
#include "prefetch.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton::cpu {
namespace {

constexpr int64_t kTile = 24;  // candidates; a multiple of the rows that add_layer takes at once
constexpr int64_t kGrain = 4;  // tiles of some microseconds
constexpr int64_t kFeatures = RerankLayers::kFeatures;
constexpr float kLeast = 1e-3f;  // LEAST of builder/network/neighbours.py

// log10 of a normal number, 1e-6 near: x = 2^e m with m about 1, log m = 2 artanh((m - 1) / (m + 1)) as its series.
inline float log10_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // m is from sqrt(1/2) to sqrt(2)
    bits -= static_cast<uint32_t>(exponent) << 23;
    float m;
    std::memcpy(&m, &bits, sizeof m);
    const float s = (m - 1.0f) / (m + 1.0f), square = s * s;
    const float series = 1.0f + square * (1.0f / 3 + square * (1.0f / 5 + square * (1.0f / 7 + square * (1.0f / 9))));
    return static_cast<float>(exponent) * 0.30102999566f + 0.86858896381f * s * series;  // log10(2), 2 log10(e)
}

void rectify(float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];  // NaN stays
}

// What is the same for all candidates of a request.
struct Prepared {
    std::vector<float> base;          // [H]: what the user adds to the first layer
    std::vector<float> product;       // [D, H]: query times weights, for (u * v) W = v (u * W)
    std::vector<float> sums, maxima;  // [M]
    float root_of_length;
};

// Room for one tile.
struct Room {
    std::vector<float> vectors, first, second, output;
    float features[kTile * kFeatures];

    explicit Room(const RerankLayers& layers)
        : vectors(static_cast<size_t>(kTile * layers.dims)),
          first(static_cast<size_t>(kTile * layers.width)),
          second(static_cast<size_t>(kTile * layers.second_width)),
          output(static_cast<size_t>(kTile * layers.output_width)) {}
};

class Rerank {
  public:
    Rerank(const RerankRequests& requests, const RerankItems& items, const RerankLayers& layers, float* logits)
        : isa_(instruction_set()), requests_(requests), items_(items), layers_(layers), logits_(logits) {}

    void prepare(int64_t b, NearHistory& near, Prepared& prepared) const {
        const int64_t width = layers_.width;
        prepared.sums.resize(static_cast<size_t>(requests_.candidates));
        prepared.maxima.resize(static_cast<size_t>(requests_.candidates));
        const int64_t known = near.score(requests_.history + b * requests_.history_width, requests_.history_width,
                                         requests_.rows + b * requests_.candidates, requests_.candidates, items_.ids,
                                         items_.graph, items_.most, prepared.sums.data(), prepared.maxima.data());
        const int64_t length = std::clamp<int64_t>(known, 1, std::max<int64_t>(items_.most, 1));
        prepared.root_of_length = std::sqrt(static_cast<float>(length));

        const float* query = requests_.query + b * requests_.query_dims;
        const float* of_length = layers_.user + layers_.dims * width;
        const float logarithm = std::log1p(static_cast<float>(known));
        prepared.base.assign(of_length + width, of_length + 2 * width);
        isa_.add_layer(&logarithm, 1, 1, of_length, 1, width, prepared.base.data());
        isa_.add_layer(query, 1, layers_.dims, layers_.user, layers_.dims, width, prepared.base.data());
        prepared.product.resize(static_cast<size_t>(layers_.dims * width));
        for (int64_t d = 0; d < layers_.dims; ++d)
            for (int64_t n = 0; n < width; ++n)
                prepared.product[static_cast<size_t>(d * width + n)] = query[d] * layers_.first[d * width + n];
    }

    void score(int64_t b, int64_t first, int64_t count, const Prepared& prepared, Room& room) const {
        const int64_t dims = layers_.dims, width = layers_.width, at = b * requests_.candidates + first;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = existing(at + i);
            if (dims != 0)
                isa_.from_halves(items_.vectors.vectors + row * dims, dims, items_.vectors.scales[row],
                                 room.vectors.data() + i * dims);
            float* sums = room.first.data() + i * width;
            isa_.from_halves(items_.kept + row * layers_.hidden, layers_.hidden, 1.0f, sums);
            std::fill(sums + layers_.hidden, sums + width, 0.0f);
            for (int64_t n = 0; n < width; ++n) sums[n] += prepared.base[static_cast<size_t>(n)];
        }
        ask_for(b, first + kTile);
        write_features(at, first, count, prepared, room.features);

        isa_.add_layer(room.vectors.data(), count, dims, prepared.product.data(), dims, width, room.first.data());
        isa_.add_layer(room.features, count, kFeatures, layers_.first + dims * width, kFeatures, width,
                       room.first.data());
        rectify(room.first.data(), count * width);

        fill_rows(layers_.second + layers_.hidden * layers_.second_width, layers_.second_width, count, room.second);
        isa_.add_layer(room.first.data(), count, width, layers_.second, layers_.hidden, layers_.second_width,
                       room.second.data());
        rectify(room.second.data(), count * layers_.second_width);

        const float* skip = layers_.output + layers_.second_hidden * layers_.output_width;
        fill_rows(skip + kFeatures * layers_.output_width, layers_.output_width, count, room.output);
        isa_.add_layer(room.second.data(), count, layers_.second_width, layers_.output, layers_.second_hidden,
                       layers_.output_width, room.output.data());
        isa_.add_layer(room.features, count, kFeatures, skip, kFeatures, layers_.output_width, room.output.data());
        for (int64_t i = 0; i < count; ++i)
            std::copy_n(room.output.data() + i * layers_.output_width, layers_.tasks,
                        logits_ + (at + i) * layers_.tasks);
    }

  private:
    // The row of a candidate; the first where there is none.
    int64_t existing(int64_t at) const {
        const int32_t row = requests_.rows[at];
        return row >= 0 && row < items_.vectors.rows ? row : 0;
    }

    // Asks memory for the rows of the tile from candidate `first` on.
    void ask_for(int64_t b, int64_t first) const {
        const int64_t end = std::min(first + kTile, requests_.candidates);
        for (int64_t m = first; m < end; ++m) {
            const int64_t row = existing(b * requests_.candidates + m);
            ask(items_.kept + row * layers_.hidden, 2 * layers_.hidden);
            if (layers_.dims == 0) continue;
            ask(items_.vectors.vectors + row * layers_.dims, 2 * layers_.dims);
            ask(items_.vectors.scales + row);
        }
    }

    // Score, sum by the root of the history's length, maximum, and the logarithms of sum and maximum.
    void write_features(int64_t at, int64_t first, int64_t count, const Prepared& prepared, float* features) const {
        float scores[kTile] = {}, sums[kTile] = {}, maxima[kTile] = {}, of_sums[kTile], of_maxima[kTile];
        std::copy_n(prepared.sums.data() + first, count, sums);
        std::copy_n(prepared.maxima.data() + first, count, maxima);
        for (int64_t i = 0; i < count; ++i) scores[i] = requests_.rows[at + i] < 0 ? 0.0f : requests_.scores[at + i];
        for (int64_t i = 0; i < kTile; ++i) of_sums[i] = log10_of(sums[i] + kLeast);
        for (int64_t i = 0; i < kTile; ++i) of_maxima[i] = log10_of(maxima[i] + kLeast);
        for (int64_t i = 0; i < count; ++i) {
            float* of_row = features + i * kFeatures;
            of_row[0] = scores[i];
            of_row[1] = sums[i] / prepared.root_of_length;
            of_row[2] = maxima[i];
            of_row[3] = of_sums[i];
            of_row[4] = of_maxima[i];
        }
    }

    static void fill_rows(const float* row, int64_t width, int64_t count, std::vector<float>& rows) {
        for (int64_t i = 0; i < count; ++i) std::copy_n(row, width, rows.data() + i * width);
    }

    const InstructionSet& isa_;
    const RerankRequests& requests_;
    const RerankItems& items_;
    const RerankLayers& layers_;
    float* logits_;
};

}  // namespace

void rerank(const RerankRequests& requests, const RerankItems& items, const RerankLayers& layers, float* logits) {
    const int64_t batch = requests.batch, candidates = requests.candidates;
    if (batch == 0 || candidates == 0) return;
    if (items.vectors.rows == 0) {
        std::fill_n(logits, batch * candidates * layers.tasks, 0.0f);
        return;
    }
    const Rerank rerank(requests, items, layers, logits);
    std::vector<Prepared> prepared(static_cast<size_t>(batch));
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        NearHistory near;
        for (int64_t b = begin; b < end; ++b) rerank.prepare(b, near, prepared[static_cast<size_t>(b)]);
    });
    const int64_t tiles = (candidates + kTile - 1) / kTile;
    parallel_for(batch * tiles, kGrain, [&](int64_t begin, int64_t end) {
        Room room(layers);
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t b = tile / tiles, first = tile % tiles * kTile;
            rerank.score(b, first, std::min(kTile, candidates - first), prepared[static_cast<size_t>(b)], room);
        }
    });
}

}  // namespace silvertriton::cpu
