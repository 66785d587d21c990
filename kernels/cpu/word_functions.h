// The functions over mask words that are plain loops, once for each instruction set that includes this file with
// ST_TARGET, its function attribute, and ST_COUNT_BITS(uint64_t), its way to count bits. The compiler makes the
// vectors.

ST_TARGET void and_words(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out) {
    for (int64_t w = 0; w < count; ++w) out[w] = a[w] & b[w];
}

ST_TARGET void or_words(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out) {
    for (int64_t w = 0; w < count; ++w) out[w] = a[w] | b[w];
}

ST_TARGET void xor_words(const uint32_t* a, const uint32_t* b, int64_t count, uint32_t* out) {
    for (int64_t w = 0; w < count; ++w) out[w] = a[w] ^ b[w];
}

ST_TARGET void not_words(const uint32_t* a, int64_t count, uint32_t* out) {
    for (int64_t w = 0; w < count; ++w) out[w] = ~a[w];
}

ST_TARGET int64_t count_words(const uint32_t* words, int64_t count) {
    int64_t sums[4] = {0, 0, 0, 0}, w = 0;  // one sum would be bound by its latency
    for (; w + 8 <= count; w += 8) {
        uint64_t pairs[4];
        std::memcpy(pairs, words + w, sizeof pairs);
        for (int i = 0; i < 4; ++i) sums[i] += ST_COUNT_BITS(pairs[i]);
    }
    for (; w < count; ++w) sums[0] += ST_COUNT_BITS(static_cast<uint64_t>(words[w]));
    return sums[0] + sums[1] + sums[2] + sums[3];
}
