// A query as the instruction sets take it: int8 codes in groups of four, and zero-padded floats in units of its scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "silvertriton/instruction_set.h"
#include "silvertriton/quantize.h"

namespace silvertriton::cpu {

// Rows are ranked by scores in units of the query's scale: it is the same for all rows, and without it a product of a
// large scale and a large query does not overflow.
class QuantizedQuery {
  public:
    QuantizedQuery(const float* query, int64_t dims)
        : units_(static_cast<size_t>((dims + 15) / 16 * 16)), groups_(static_cast<size_t>(groups_of(dims))) {
        float largest = 0.0f;
        for (int64_t i = 0; i < dims; ++i) largest = std::max(largest, std::fabs(finite_or_zero(query[i])));
        const float scale = scale_of(largest);
        int32_t sum = 0;
        std::vector<int8_t> codes(groups_.size() * 4);
        for (int64_t i = 0; i < dims; ++i) {
            units_[i] = in_scale(finite_or_zero(query[i]), scale);
            codes[i] = code_of(units_[i]);
            sum += codes[i];
        }
        std::memcpy(groups_.data(), codes.data(), codes.size());
        codes_ = {groups_.data(), static_cast<int64_t>(groups_.size()), -128 * sum};
    }
    QuantizedQuery(const QuantizedQuery&) = delete;
    QuantizedQuery& operator=(const QuantizedQuery&) = delete;

    const QueryCodes& codes() const { return codes_; }
    const float* units() const { return units_.data(); }

  private:
    std::vector<float> units_;
    std::vector<int32_t> groups_;
    QueryCodes codes_;
};

}  // namespace silvertriton::cpu
