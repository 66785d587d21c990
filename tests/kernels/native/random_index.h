// A whole index of random vectors and requests of all kinds for it, for programs that test the search without torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "random.h"
#include "silvertriton/arguments.h"
#include "silvertriton/program.h"

namespace silvertriton {

// A float as a half, cut off; too small becomes 0.
inline uint16_t half_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t half = magnitude < (113u << 23) ? 0 : (magnitude >> 13) - (112u << 10);
    return static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
}

// Rows of up to `dims` components in units of their scale, as codes.
struct Codes {
    std::vector<int8_t> codes;
    std::vector<float> scales;
    int64_t blocks, dims;

    Codes(int64_t rows, int64_t code_dims) : blocks((rows + kBlockRows - 1) / kBlockRows), dims(code_dims) {
        codes.resize(static_cast<size_t>(blocks * block_bytes(dims)));
        scales.resize(static_cast<size_t>(blocks * kBlockRows));
    }
    int8_t& at(int64_t row, int64_t i) {
        const int64_t group = row / kBlockRows * groups_of(dims) + i / 4;
        return codes[static_cast<size_t>((group * kBlockRows + row % kBlockRows) * 4 + i % 4)];
    }
    void set(int64_t row, const std::vector<float>& units, float scale) {
        for (int64_t i = 0; i < dims; ++i) at(row, i) = static_cast<int8_t>(std::rint(units[static_cast<size_t>(i)]));
        scales[static_cast<size_t>(row)] = scale;
    }
    CodeBlocks view() const { return {codes.data(), scales.data(), blocks, dims}; }
};

// Filter features: 0 has the keys 1, 2, 3, as bitmaps, which pass a half, a 16th, a 256th of the rows; 1 has 1 to 9, as
// postings of a few rows each; 2 is a number from 0 to 99, unknown of every tenth item. Ids are three times the row.
class RandomIndex {
  public:
    RandomIndex(Random& random, int64_t dims, int64_t code_dims, int64_t clusters, float magnitude, bool by_row)
        : clusters_(clusters), items_(lay_out(random, clusters), code_dims), centroids_(clusters, code_dims) {
        add_vectors(random, dims, magnitude);
        if (by_row) add_row_codes();
        projection_.resize(code_dims < dims ? static_cast<size_t>(dims * code_dims) : 0);
        for (float& weight : projection_) weight = random.unit();
        spreads_.resize(centroids_.scales.size());
        for (float& spread : spreads_) spread = std::fabs(random.unit()) * magnitude;
        add_keys(random);
        add_number(random);
        index_.items = items_.view();
        index_.centroids = centroids_.view();
        index_.row_codes = {by_row ? row_codes_.data() : nullptr};
        index_.vectors = {vectors_.data(), items_.scales.data(), rows(), dims};
        index_.projection = projection_.empty() ? nullptr : projection_.data();
        index_.centroid_spreads = spreads_.data();
        index_.reach = reach_;
        index_.reach_count = 3;
        fill(index_.filters);
    }
    RandomIndex(const RandomIndex&) = delete;
    RandomIndex& operator=(const RandomIndex&) = delete;

    const SearchIndex& view() const { return index_; }
    int64_t rows() const { return static_cast<int64_t>(ids_.size()); }

  private:
    static constexpr int64_t kBuckets = 4;

    // Returns the rows.
    int64_t lay_out(Random& random, int64_t clusters) {
        for (int64_t c = 0; c < clusters; ++c) {
            const int64_t items = random.below(8) == 0 ? 0 : random.below(120), blocks = (items + 31) / 32;
            for (int64_t row = 0; row < blocks * kBlockRows; ++row) {
                if (row < items) item_rows_.push_back(static_cast<int32_t>(rows()));
                ids_.push_back(row < items ? rows() * 3 : -1);
                if (row % kBlockRows == 0) valid_.push_back(0);
                if (row < items) valid_.back() |= 1u << (row % kBlockRows);
            }
            cluster_blocks_.push_back(cluster_blocks_.back() + static_cast<int32_t>(blocks));
        }
        return rows();
    }

    void add_vectors(Random& random, int64_t dims, float magnitude) {
        std::vector<float> units(static_cast<size_t>(dims));
        const auto random_units = [&] {
            for (float& unit : units) unit = 127.0f * random.unit();
        };
        vectors_.resize(static_cast<size_t>(rows() * dims));
        for (const int32_t row : item_rows_) {
            if (random.below(4) != 0) random_units();  // else the vector of the row before: ties
            for (int64_t i = 0; i < dims; ++i)
                vectors_[static_cast<size_t>(row * dims + i)] = half_of(units[static_cast<size_t>(i)]);
            items_.set(row, units, (1.0f + static_cast<float>(random.below(3))) * magnitude);
        }
        for (int64_t c = 0; c < clusters_; ++c) {
            random_units();
            centroids_.set(c, units, magnitude);
        }
    }

    void add_row_codes() {
        const int64_t width = RowCodes::width(items_.dims);
        row_codes_.resize(static_cast<size_t>(rows() * width));
        for (int64_t row = 0; row < rows(); ++row) {
            int32_t* words = row_codes_.data() + row * width;
            for (int64_t i = 0; i < items_.dims; ++i) reinterpret_cast<int8_t*>(words)[i] = items_.at(row, i);
            std::memcpy(words + groups_of(items_.dims), &items_.scales[static_cast<size_t>(row)], sizeof(float));
        }
    }

    void set(uint32_t* words, int64_t row) { words[row / kBlockRows] |= 1u << (row % kBlockRows); }

    void add_keys(Random& random) {
        const auto blocks = static_cast<int64_t>(valid_.size());
        for (int64_t key = 0; key < 4; ++key) add_term(key, static_cast<int32_t>(key));
        bitmaps_.resize(static_cast<size_t>(4 * blocks));
        for (const int32_t row : item_rows_)
            for (int64_t key = 1; key < 4; ++key)
                if (random.below(key == 1 ? 2 : key == 2 ? 16 : 256) == 0) set(bitmaps_.data() + key * blocks, row);
        feature_terms_.push_back(static_cast<int32_t>(term_keys_.size()));
        for (int64_t key = 0; key < 10; ++key) {
            for (const int32_t row : item_rows_)
                if (key > 0 && random.below(100 * key) < 5) postings_.push_back(row);
            add_term(key, -1);
        }
        feature_terms_.push_back(static_cast<int32_t>(term_keys_.size()));
    }

    void add_term(int64_t key, int32_t bitmap) {
        term_keys_.push_back(key);
        term_bitmap_.push_back(bitmap);
        term_postings_.push_back(static_cast<int64_t>(postings_.size()));
    }

    void add_number(Random& random) {
        numbers_.assign(static_cast<size_t>(rows()), std::numeric_limits<double>::quiet_NaN());
        for (const int32_t row : item_rows_) {
            if (row % 10 == 0) {
                postings_.push_back(row);
                continue;
            }
            numbers_[static_cast<size_t>(row)] = static_cast<double>(random.below(100));
            number_rows_.push_back(row);
        }
        add_term(0, -1);
        feature_terms_.push_back(static_cast<int32_t>(term_keys_.size()));
        std::stable_sort(number_rows_.begin(), number_rows_.end(), [&](int32_t a, int32_t b) {
            return numbers_[static_cast<size_t>(a)] < numbers_[static_cast<size_t>(b)];
        });
        const auto known = static_cast<int64_t>(number_rows_.size()), step = (known + kBuckets - 1) / kBuckets;
        number_known_ = static_cast<int32_t>(known);
        number_bitmaps_.resize((kBuckets - 1) * valid_.size());
        for (int64_t bucket = 1; bucket < kBuckets; ++bucket)
            for (int64_t i = 0; i < std::min(bucket * step, known); ++i)
                set(number_bitmaps_.data() + (bucket - 1) * static_cast<int64_t>(valid_.size()),
                    number_rows_[static_cast<size_t>(i)]);
        number_rows_.resize(static_cast<size_t>(rows()), -1);
    }

    void fill(FilterIndex& filters) const {
        filters.item_ids = {ids_.data(), item_rows_.data(), rows(), static_cast<int64_t>(item_rows_.size())};
        filters.feature_terms = feature_terms_.data();
        filters.term_keys = term_keys_.data();
        filters.term_bitmap = term_bitmap_.data();
        filters.term_postings = term_postings_.data();
        filters.postings = postings_.data();
        filters.bitmaps = bitmaps_.data();
        filters.feature_number = feature_number_;
        filters.number_values = numbers_.data();
        filters.number_rows = number_rows_.data();
        filters.number_known = &number_known_;
        filters.number_bitmaps = number_bitmaps_.data();
        filters.valid = valid_.data();
        filters.cluster_blocks = cluster_blocks_.data();
        filters.features = 3;
        filters.terms = static_cast<int64_t>(term_keys_.size());
        filters.posting_count = static_cast<int64_t>(postings_.size());
        filters.bitmap_count = 4;
        filters.numbers = 1;
        filters.buckets = kBuckets;
        filters.blocks = static_cast<int64_t>(valid_.size());
        filters.clusters = clusters_;
    }

    const int64_t clusters_;
    std::vector<int64_t> ids_;
    std::vector<int32_t> item_rows_, cluster_blocks_{0};
    std::vector<uint32_t> valid_;
    Codes items_, centroids_;
    std::vector<uint16_t> vectors_;
    std::vector<int32_t> row_codes_;
    std::vector<float> projection_, spreads_;
    const float reach_[3] = {1.0f, 0.5f, 0.25f};
    std::vector<int32_t> feature_terms_{0}, term_bitmap_, postings_, number_rows_;
    std::vector<int64_t> term_keys_, term_postings_{0};
    std::vector<uint32_t> bitmaps_, number_bitmaps_;
    std::vector<double> numbers_;
    const int32_t feature_number_[3] = {-1, -1, 0};
    int32_t number_known_ = 0;
    SearchIndex index_{};
};

// Requests for such an index: every kind of filter and none, some of them alike; any excluded ids and limits; a query
// of zeros, one that overflows and one that is not a number.
class RandomRequests {
  public:
    RandomRequests(Random& random, const RandomIndex& index, int64_t batch)
        : batch_(batch), dims_(index.view().vectors.dims), status_(static_cast<size_t>(batch), kStatusOk) {
        query_.resize(static_cast<size_t>(batch * dims_));
        for (float& component : query_) component = random.unit();
        std::fill_n(query_.begin(), dims_, 0.0f);
        query_[static_cast<size_t>(2 * dims_ - 1)] = 3e38f;
        query_[static_cast<size_t>(3 * dims_ - 1)] = std::numeric_limits<float>::quiet_NaN();
        const int64_t clusters = index.view().filters.clusters, ids = std::max<int64_t>(3 * index.rows(), 1);
        for (int64_t b = 0; b < batch; ++b) {
            add_program(random, b, ids);
            for (int64_t e = 0; e < kExclude; ++e) exclude_.push_back(random.below(2) == 0 ? -1 : random.below(ids));
            limits_.push_back(static_cast<int32_t>(random.below(std::clamp<int64_t>(clusters, 1, 8))));
            limits_.push_back(static_cast<int32_t>(random.below(kMost + 1)));
        }
    }

    static constexpr int64_t kMost = 60;  // candidates
    static constexpr SearchLimits kLimits{0, 30, kMost, 40};

    // The last `batch` of them.
    SearchRequests last(int64_t batch) const {
        const int64_t first = batch_ - batch;
        return {query_.data() + first * dims_,
                program_.data() + first * kProgram,
                exclude_.data() + first * kExclude,
                limits_.data() + first * 2,
                status_.data() + first,
                batch,
                kProgram,
                kExclude,
                kFingerprint};
    }

  private:
    static constexpr int64_t kProgram = 9, kExclude = 3, kFingerprint = 77;

    static constexpr int64_t head(Opcode opcode, int64_t feature, int64_t count) {
        return static_cast<int64_t>(opcode) | feature << 8 | count << 32;
    }
    static int64_t bound(double value) {
        int64_t word;
        std::memcpy(&word, &value, sizeof word);
        return word;
    }

    void add_program(Random& random, int64_t b, int64_t ids) {
        const int64_t frequent = head(Opcode::kAny, 0, 1), rare = head(Opcode::kAny, 1, 2);
        const int64_t range = head(Opcode::kRange, 2, 2), negation = head(Opcode::kNot, 0, 0);
        const int64_t low = random.below(100), high = low + random.below(50);
        std::vector<int64_t> code;
        switch (b % 8) {
            case 0:
            case 4:
                break;
            case 5:
                code = {frequent, 1 + b % 3, negation};
                break;
            case 2:
                code = {rare, 1 + random.below(9), 1 + random.below(9)};
                break;
            case 3:
                code = {range, bound(static_cast<double>(low)), bound(static_cast<double>(high))};
                break;
            case 6:
                code = {range, bound(static_cast<double>(low)), bound(static_cast<double>(high)), frequent,
                        1,     head(Opcode::kAnd, 0, 0)};
                break;
            case 7:
                code = {head(Opcode::kItems, 0, 3), random.below(ids), random.below(ids), -1};
                break;
            default:
                code = {frequent, 1 + b % 3};
        }
        program_.insert(program_.end(), {kFingerprint, static_cast<int64_t>(code.size())});
        code.resize(static_cast<size_t>(kProgram - 2), -1);  // ignored
        program_.insert(program_.end(), code.begin(), code.end());
    }

    const int64_t batch_, dims_;
    std::vector<float> query_;
    std::vector<int64_t> program_, exclude_;
    std::vector<int32_t> limits_, status_;
};

// Room for the results of a search.
struct SearchRoom {
    std::vector<int32_t> rows, stats, status;
    std::vector<int64_t> ids;
    std::vector<float> scores;
    int64_t width;

    SearchRoom(int64_t batch, int64_t most)
        : rows(static_cast<size_t>(batch * most)),
          stats(static_cast<size_t>(batch * 4)),
          status(static_cast<size_t>(batch)),
          ids(static_cast<size_t>(batch * most)),
          scores(static_cast<size_t>(batch * most)),
          width(most) {}

    SearchResults view() { return {rows.data(), ids.data(), scores.data(), stats.data(), status.data(), width}; }

    bool operator==(const SearchRoom& other) const {
        const auto same_bits = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
        return rows == other.rows && stats == other.stats && status == other.status && ids == other.ids &&
               std::equal(scores.begin(), scores.end(), other.scores.begin(), other.scores.end(), same_bits);
    }
};

}  // namespace silvertriton
