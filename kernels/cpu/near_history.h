// How near candidates are to a history in a graph of items. The neighbours of some tens of items are looked up among
// the candidates, in a table that fits the first-level cache; the other way round a candidate's neighbours would be
// looked up in the history, and there are more candidates.
#pragma once

#include <algorithm>
#include <vector>

#include "find_items.h"
#include "prefetch.h"
#include "silvertriton/arguments.h"

namespace silvertriton::cpu {

// Candidate rows and their positions, by open addressing. Few of the rows that are looked up are candidates: a bitmap
// of hashes rules nearly all others out first, without a branch for each.
class Positions {
  public:
    void assign(const int32_t* rows, int64_t count) {
        size_t size = 16;
        shift_ = 28;
        while (size < 2 * static_cast<size_t>(count)) {
            size *= 2;
            shift_ -= 1;
        }
        keys_.assign(size, -1);
        values_.resize(size);
        seen_.assign((size << kSeenBits) / 64, 0);
        repeated_.clear();
        for (int64_t m = 0; m < count; ++m) {
            if (rows[m] < 0) continue;
            const size_t bit = seen_bit(rows[m]);
            seen_[bit / 64] |= uint64_t{1} << bit % 64;
            const size_t at = slot(rows[m]);
            if (keys_[at] == rows[m]) {
                repeated_.push_back({static_cast<int32_t>(m), values_[at]});
                continue;
            }
            keys_[at] = rows[m];
            values_[at] = static_cast<int32_t>(m);
        }
    }

    // Of a row that is not negative; -1 where it is no candidate.
    int32_t find(int32_t row) const {
        const size_t at = slot(row);
        return keys_[at] == row ? values_[at] : -1;
    }

    // Which of `rows`, up to the first negative one, may be candidates: writes their places to `places` and returns how
    // many those are.
    int64_t sift(const int32_t* rows, int64_t count, int32_t* places) const {
        int64_t sifted = 0;
        for (int64_t j = 0; j < count && rows[j] >= 0; ++j) {
            const size_t bit = seen_bit(rows[j]);
            places[sifted] = static_cast<int32_t>(j);
            sifted += static_cast<int64_t>(seen_[bit / 64] >> bit % 64 & 1);
        }
        return sifted;
    }

    struct Repeated {
        int32_t position, first;
    };

    // Positions of rows that stand before them too.
    const std::vector<Repeated>& repeated() const { return repeated_; }

  private:
    static constexpr int kSeenBits = 4;  // two to this many bits a slot, of which a half at most is taken

    size_t seen_bit(int32_t row) const {
        return (static_cast<uint32_t>(row) * 2654435769u) >> (shift_ - kSeenBits);  // Fibonacci hashing
    }

    // Where a row stands, or where it would.
    size_t slot(int32_t row) const {
        size_t at = seen_bit(row) >> kSeenBits;
        while (keys_[at] != -1 && keys_[at] != row) at = (at + 1) & (keys_.size() - 1);
        return at;
    }

    std::vector<int32_t> keys_, values_;
    std::vector<uint64_t> seen_;
    std::vector<Repeated> repeated_;
    int shift_ = 28;
};

// One request after the other; what it keeps between them is room.
class NearHistory {
  public:
    // Writes `sums` and `maxima` of all `candidates`, as neighbour_scores has them (operators.h), and returns how many
    // of the history's newest `most` ids are in the catalogue.
    int64_t score(const int64_t* history, int64_t history_width, const int32_t* rows, int64_t candidates,
                  const ItemIds& items, const Neighbours& graph, int64_t most, float* sums, float* maxima) {
        std::fill_n(sums, candidates, 0.0f);
        std::fill_n(maxima, candidates, 0.0f);
        known_.clear();
        int64_t left = most;
        for (int64_t l = history_width; l-- > 0 && left > 0;) {
            if (history[l] < 0) continue;
            left -= 1;
            known_.push_back(history[l]);
        }
        find_items(items, known_.data(), static_cast<int64_t>(known_.size()), known_.data());
        known_.erase(std::remove(known_.begin(), known_.end(), -1), known_.end());
        const auto known = static_cast<int64_t>(known_.size());
        if (known == 0 || graph.width == 0 || candidates == 0) return known;
        const auto ask_for = [&](size_t at) {
            if (at >= known_.size()) return;
            ask(graph.rows + known_[at] * graph.width, 4 * graph.width);
            ask(graph.weights + known_[at] * graph.width, 4 * graph.width);
        };
        constexpr size_t kAhead = 4;
        for (size_t at = 0; at < kAhead; ++at) ask_for(at);
        positions_.assign(rows, candidates);
        places_.resize(static_cast<size_t>(graph.width));
        for (size_t at = 0; at < known_.size(); ++at) {
            ask_for(at + kAhead);
            const int64_t item = known_[at];
            const int32_t* neighbours = graph.rows + item * graph.width;
            const float* weights = graph.weights + item * graph.width;
            const int64_t sifted = positions_.sift(neighbours, graph.width, places_.data());
            for (int64_t i = 0; i < sifted; ++i) {
                const int32_t j = places_[static_cast<size_t>(i)];
                const int32_t position = positions_.find(neighbours[j]);
                if (position < 0) continue;
                sums[position] += weights[j];
                maxima[position] = std::max(maxima[position], weights[j]);
            }
        }
        for (const auto& again : positions_.repeated()) {
            sums[again.position] = sums[again.first];
            maxima[again.position] = maxima[again.first];
        }
        return known;
    }

  private:
    Positions positions_;
    std::vector<int64_t> known_;
    std::vector<int32_t> places_;
};

}  // namespace silvertriton::cpu
