// Random numbers of our own: those of the standard library need not agree between machines.
#pragma once

#include <cstddef>
#include <cstdint>

namespace silvertriton {

struct Random {
    uint64_t state;

    uint64_t word() {
        state += 0x9e3779b97f4a7c15u;
        uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int64_t below(int64_t end) { return static_cast<int64_t>(word() % static_cast<uint64_t>(end)); }
    float unit() { return static_cast<float>(below(1 << 24)) * 0x1p-23f - 1.0f; }
    template <typename T, size_t kCount>
    T any_of(const T (&values)[kCount]) {
        return values[below(kCount)];
    }
};

// Of kinds that tell instruction sets apart.
inline int8_t random_code(Random& random, int kind) {
    constexpr int8_t kEnds[] = {-127, 127, 0, 1, -1};
    constexpr int8_t kDamaged[] = {-128, 127, -128, -127};
    if (kind == 1) return random.any_of(kEnds);
    if (kind == 2) return random.any_of(kDamaged);
    if (kind == 3) return 127;
    if (kind == 4) return -128;
    return static_cast<int8_t>(random.below(255) - 127);
}

inline uint32_t random_mask(Random& random) {
    switch (random.below(5)) {
        case 0:
            return 0;
        case 1:
            return ~0u;
        case 2:
            return 1u << random.below(32);
        case 3:
            return static_cast<uint32_t>(random.word() & random.word() & random.word());
        default:
            return static_cast<uint32_t>(random.word());
    }
}

}  // namespace silvertriton
