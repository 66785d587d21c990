// A query as the instruction sets take it: int8 codes of its projection in groups of four, and zero-padded floats of
// all its dims, both in units of one scale, so that the scores of either are comparable.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "silvertriton/instruction_set.h"
#include "silvertriton/quantize.h"

namespace silvertriton::cpu {

// Rows are ranked by scores in units of the query's scale: it is the same for all rows, and without it a product of a
// large scale and a large query does not overflow. Reused from call to call, so that nothing is allocated.
class PreparedQuery {
  public:
    // `query` [D]; `projection` [D, P], or null with P = D.
    void prepare(const float* query, int64_t dims, const float* projection, int64_t code_dims) {
        units_.assign(static_cast<size_t>((dims + 15) / 16 * 16), 0.0f);
        float largest = 0.0f;
        for (int64_t i = 0; i < dims; ++i) largest = std::max(largest, std::fabs(units_[i] = finite_or_zero(query[i])));
        const float* coded = units_.data();
        if (projection != nullptr) {
            // Divided first: the projection of a large query must not overflow. One fixed order, multiply and add
            // rounded apart.
            const float first_scale = scale_of(largest);
            for (int64_t i = 0; i < dims; ++i) units_[i] = in_scale(units_[i], first_scale);
            projected_.assign(static_cast<size_t>(code_dims), 0.0f);
            float* sums = projected_.data();
            for (int64_t i = 0; i < dims; ++i) {
                const float unit = units_[i];
                const float* row = projection + i * code_dims;
                for (int64_t p = 0; p < code_dims; ++p) sums[p] += unit * row[p];
            }
            largest = largest > 0.0f ? 127.0f : 0.0f;
            for (int64_t p = 0; p < code_dims; ++p)
                largest = std::max(largest, std::fabs(sums[p] = finite_or_zero(sums[p])));
            coded = sums;
        }
        const float scale = scale_of(largest);
        const int64_t groups = groups_of(code_dims);
        groups_.assign(static_cast<size_t>(groups + 4), 0);  // scan_rows reads whole vectors of four
        int8_t* codes = reinterpret_cast<int8_t*>(groups_.data());
        int32_t sum = 0;
        squares_ = 0;
        for (int64_t p = 0; p < code_dims; ++p) {
            codes[p] = code_of(in_scale(coded[p], scale));
            sum += codes[p];
            squares_ += codes[p] * codes[p];
        }
        for (int64_t i = 0; i < dims; ++i) units_[i] = in_scale(units_[i], scale);
        codes_ = {groups_.data(), groups, static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(sum))};
    }

    const QueryCodes& codes() const { return codes_; }
    // Of the codes: the query's, as projected, in units of its scale.
    float length() const { return std::sqrt(static_cast<float>(squares_)); }
    const float* units() const { return units_.data(); }

  private:
    std::vector<float> units_, projected_;
    std::vector<int32_t> groups_;
    QueryCodes codes_{};
    int32_t squares_ = 0;
};

}  // namespace silvertriton::cpu
