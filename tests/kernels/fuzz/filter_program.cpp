// A libFuzzer target: filter programs of any words against a small index, with AddressSanitizer and UBSan. What the
// operator finds is compared with a plain evaluator of docs/filter-program.md, row by row, on every instruction set.
//
//   scripts/fuzz              a minute
//   scripts/fuzz -runs=...    libFuzzer's own options

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "silvertriton/instruction_set.h"
#include "silvertriton/program.h"

namespace silvertriton {

void parallel_for(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
    if (count > 0) body(0, count);
}

int64_t thread_count() {
    return 1;
}

namespace {

constexpr int64_t kFingerprint = 0x5eed;
constexpr int64_t kItems = 1500, kRows = 1536, kBlocks = kRows / kBlockRows;
constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kFeatures = 5;

using Keys = std::set<int64_t>;
using Rows = std::bitset<kItems>;

// Values of the items, and the index over them. Features 0, 1 and 3 have keys, 2 and 4 numbers.
struct Catalogue {
    std::vector<Keys> keys[kFeatures];
    std::vector<double> numbers[kFeatures];
    std::map<int64_t, Rows> with_key[kFeatures];  // the same values as rows, for the plain evaluator
    Rows unknown[kFeatures];
    std::vector<int32_t> feature_terms{0}, term_bitmap, postings, feature_number, number_rows, number_known, item_rows;
    std::vector<int64_t> term_keys, term_postings{0}, ids;
    std::vector<uint32_t> bitmaps, number_bitmaps, valid;
    std::vector<double> number_values;
    std::vector<int32_t> cluster_blocks{0, 5, 5, 20, kBlocks};
    FilterIndex index{};

    Catalogue() {
        for (int64_t item = 0; item < kItems; ++item) {
            keys[0].push_back(item % 7 == 0 ? Keys{} : Keys{item % 7});                   // frequent: bitmaps
            keys[1].push_back({item % 3, 10 + item % 40, 1000 + item % 500, -item % 2});  // tags, frequent and rare
            keys[3].push_back(item == 77 ? Keys{std::numeric_limits<int64_t>::min() + 1} : Keys{});
            numbers[2].push_back(item % 11 == 0 ? kNan : std::floor(static_cast<double>(item) / 10));
            const double odd[] = {0.0, -0.0, kInfinity, -kInfinity, 5e-324, 1e300, -1.5};
            numbers[4].push_back(odd[item % 7]);
        }
        for (int64_t feature = 0; feature < kFeatures; ++feature)
            for (size_t item = 0; item < kItems; ++item) {
                const bool is_number = !numbers[feature].empty();
                unknown[feature][item] = is_number ? std::isnan(numbers[feature][item]) : keys[feature][item].empty();
                if (!is_number)
                    for (const int64_t key : keys[feature][item]) with_key[feature][key].set(item);
            }
        valid.assign(kBlocks, 0);
        for (int64_t row = 0; row < kItems; ++row) valid[static_cast<size_t>(row / 32)] |= 1u << (row % 32);
        item_rows.resize(kItems);
        for (int64_t row = 0; row < kRows; ++row) {
            ids.push_back(row < kItems ? row * 7 % kItems : -1);  // every id below kItems, in another order
            if (row < kItems) item_rows[static_cast<size_t>(ids.back())] = static_cast<int32_t>(row);
        }
        for (int64_t feature = 0; feature < kFeatures; ++feature) add(feature);
        index.item_ids = {ids.data(), item_rows.data(), kRows, kItems};
        index.feature_terms = feature_terms.data();
        index.term_keys = term_keys.data();
        index.term_bitmap = term_bitmap.data();
        index.term_postings = term_postings.data();
        index.postings = postings.data();
        index.bitmaps = bitmaps.data();
        index.feature_number = feature_number.data();
        index.number_values = number_values.data();
        index.number_rows = number_rows.data();
        index.number_known = number_known.data();
        index.number_bitmaps = number_bitmaps.data();
        index.valid = valid.data();
        index.cluster_blocks = cluster_blocks.data();
        index.features = kFeatures;
        index.terms = static_cast<int64_t>(term_keys.size());
        index.posting_count = static_cast<int64_t>(postings.size());
        index.bitmap_count = static_cast<int64_t>(bitmaps.size()) / kBlocks;
        index.numbers = 2;
        index.buckets = kBuckets;
        index.blocks = kBlocks;
        index.clusters = static_cast<int64_t>(cluster_blocks.size()) - 1;
    }

  private:
    static constexpr int64_t kBuckets = 8, kFrequent = kItems / 32;

    static void set(uint32_t* words, int64_t row) { words[row / 32] |= 1u << (row % 32); }

    void add(int64_t feature) {
        const bool is_number = !numbers[feature].empty();
        feature_number.push_back(is_number ? static_cast<int32_t>(number_known.size()) : -1);
        Keys vocabulary;
        for (const Keys& of_item : keys[feature]) vocabulary.insert(of_item.begin(), of_item.end());
        add_term(0, [&](int64_t row) {
            const auto at = static_cast<size_t>(row);
            return is_number ? std::isnan(numbers[feature][at]) : keys[feature][at].empty();
        });
        for (const int64_t key : vocabulary)
            add_term(key, [&](int64_t row) { return keys[feature][static_cast<size_t>(row)].count(key) > 0; });
        feature_terms.push_back(static_cast<int32_t>(term_keys.size()));
        if (is_number) add_number(numbers[feature]);
    }

    void add_term(int64_t key, const std::function<bool(int64_t)>& has) {
        std::vector<int32_t> rows;
        for (int64_t row = 0; row < kItems; ++row)
            if (has(row)) rows.push_back(static_cast<int32_t>(row));
        term_keys.push_back(key);
        term_bitmap.push_back(-1);
        if (static_cast<int64_t>(rows.size()) > kFrequent) {
            term_bitmap.back() = static_cast<int32_t>(bitmaps.size()) / static_cast<int32_t>(kBlocks);
            bitmaps.resize(bitmaps.size() + kBlocks);
            for (const int32_t row : rows) set(&bitmaps[bitmaps.size() - kBlocks], row);
            rows.clear();
        }
        postings.insert(postings.end(), rows.begin(), rows.end());
        term_postings.push_back(static_cast<int64_t>(postings.size()));
    }

    void add_number(const std::vector<double>& values) {
        std::vector<double> by_row(values);
        by_row.resize(kRows, kNan);
        std::vector<int32_t> order;
        for (int32_t row = 0; row < kRows; ++row)
            if (!std::isnan(by_row[static_cast<size_t>(row)])) order.push_back(row);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return by_row[static_cast<size_t>(a)] < by_row[static_cast<size_t>(b)];
        });
        const auto known = static_cast<int64_t>(order.size()), step = (known + kBuckets - 1) / kBuckets;
        number_known.push_back(static_cast<int32_t>(known));
        for (int64_t bucket = 1; bucket < kBuckets; ++bucket) {
            number_bitmaps.resize(number_bitmaps.size() + kBlocks);
            for (int64_t i = 0; i < std::min(bucket * step, known); ++i)
                set(&number_bitmaps[number_bitmaps.size() - kBlocks], order[static_cast<size_t>(i)]);
        }
        order.resize(kRows, -1);
        number_values.insert(number_values.end(), by_row.begin(), by_row.end());
        number_rows.insert(number_rows.end(), order.begin(), order.end());
    }
};

const Catalogue& catalogue() {
    static const Catalogue made;
    return made;
}

// The contract again, without an index: false where the program is malformed.
bool evaluate(const std::vector<int64_t>& program, Rows& passes) {
    const Catalogue& items = catalogue();
    const int64_t length = program[1];
    if (length < 0 || length > static_cast<int64_t>(program.size()) - 2 || length + 2 > 65536) return false;
    std::vector<Rows> stack;
    for (int64_t at = 2; at < length + 2;) {
        const int64_t head = program[static_cast<size_t>(at++)];
        if (head < 0) return false;
        const int64_t opcode = head & 0xff, feature = head >> 8 & 0xffffff, count = head >> 32;
        if (count > length + 2 - at) return false;
        const int64_t* operands = program.data() + at;
        at += count;
        if (opcode >= 1 && opcode <= 3) {
            if (feature != 0 || count != 0 || stack.size() < (opcode == 3 ? 1u : 2u)) return false;
            const Rows right = stack.back();
            if (opcode == 3) {
                stack.back().flip();
                continue;
            }
            stack.pop_back();
            if (opcode == 1) stack.back() &= right;
            if (opcode == 2) stack.back() |= right;
            continue;
        }
        if (opcode == 8) {
            if (feature != 0) return false;
            Rows set;
            for (int64_t i = 0; i < count; ++i)
                if (operands[i] >= 0 && operands[i] < kItems)
                    set.set(static_cast<size_t>(items.item_rows[static_cast<size_t>(operands[i])]));
            stack.push_back(set);
            if (stack.size() > 16) return false;
            continue;
        }
        if (opcode < 4 || opcode > 7 || feature >= kFeatures) return false;
        const auto& numbers = items.numbers[feature];
        const bool is_number = !numbers.empty();
        if (opcode == 6 ? !is_number || count != 2 : (opcode == 7 ? count != 0 : is_number)) return false;
        Rows set;
        if (opcode == 5) set.set();
        for (int64_t i = 0; i < count && opcode != 6; ++i) {
            const auto found = items.with_key[feature].find(operands[i]);
            const Rows with = found == items.with_key[feature].end() ? Rows{} : found->second;
            set = opcode == 4 ? set | with : set & with;
        }
        if (opcode == 6) {
            double low = 0, high = 0;
            std::memcpy(&low, operands, 8), std::memcpy(&high, operands + 1, 8);
            if (std::isnan(low) || std::isnan(high)) return false;
            for (size_t i = 0; i < kItems; ++i) set[i] = low <= numbers[i] && numbers[i] <= high;
        }
        if (opcode == 7) set = items.unknown[feature];
        stack.push_back(set);
        if (stack.size() > 16) return false;
    }
    if (stack.size() != 1) return false;
    passes = stack[0];
    return true;
}

// Bytes as a program: as they are, or as instructions whose operands mostly mean something.
class Reader {
  public:
    Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

    std::vector<int64_t> program() {
        const uint8_t kind = byte();
        std::vector<int64_t> code;
        while (size_ > 0 && code.size() < 4000) {
            if (kind % 4 == 0) {
                code.push_back(word());
            } else {
                instruction(code);
            }
        }
        std::vector<int64_t> program{kind % 32 == 31 ? word() : kFingerprint, static_cast<int64_t>(code.size())};
        program.insert(program.end(), code.begin(), code.end());
        if (kind / 32 % 4 == 1) program[1] = word();
        if (kind / 32 % 4 == 2) program.insert(program.end(), 3, -1);  // padding
        return program;
    }

  private:
    uint8_t byte() { return size_ == 0 ? uint8_t{0} : (--size_, *data_++); }

    int64_t word() {
        uint8_t bytes[8] = {};
        for (uint8_t& one : bytes) one = byte();
        int64_t value;
        std::memcpy(&value, bytes, 8);
        return value;
    }

    void instruction(std::vector<int64_t>& code) {
        const uint8_t opcode = byte();
        if (opcode >= 250) {
            code.push_back(word());
            return;
        }
        if (opcode >= 232 && opcode < 240) {
            const int64_t feature = opcode == 239, count = byte() % 12;
            code.push_back(8 | feature << 8 | count << 32);
            for (int64_t i = 0; i < count; ++i) code.push_back(key());
            return;
        }
        const int64_t op = opcode % 8, feature = op >= 4 ? byte() % (kFeatures + 1) : opcode >= 240;
        const int64_t count = op == 6 ? 2 : op == 4 || op == 5 ? byte() % 12 : opcode >= 248;
        code.push_back(op | feature << 8 | count << 32);
        for (int64_t i = 0; i < count; ++i) code.push_back(op == 6 ? bound() : key());
    }

    int64_t key() {
        const uint8_t kind = byte();
        if (kind >= 250) return word();
        return kind < 128 ? kind : 1000 + 4 * (kind - 128);
    }

    int64_t bound() {
        const double odd[] = {0.0, -0.0, kInfinity, -kInfinity, 5e-324, 1e300, -1.5, kNan};
        const uint8_t kind = byte();
        if (kind >= 250) return word();
        const double value = kind < 8 ? odd[kind] : kind;
        int64_t bits;
        std::memcpy(&bits, &value, 8);
        return bits;
    }

    const uint8_t* data_;
    size_t size_;
};

[[noreturn]] void fail(const char* set, const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", set, what.c_str());
    std::abort();
}

void check(const std::vector<int64_t>& program, const char* set) {
    Rows passes;
    passes.set();
    int32_t status = kStatusOk;
    if (program[1] != 0) {
        if (program[0] != kFingerprint) {
            status = kStatusFilterFingerprint;
        } else if (!evaluate(program, passes)) {
            status = kStatusFilterMalformed;
        }
    }
    std::vector<uint32_t> words(kBlocks, 0xdeadbeef);
    std::vector<int32_t> rows;
    cpu::FilterRequest request{program.data(), words.data(), &rows, false, 0, kStatusOk};
    cpu::filter_rows("fuzz", &request, 1, static_cast<int64_t>(program.size()), kFingerprint, catalogue().index);
    if (request.status != status)
        fail(set, "status " + std::to_string(request.status) + ", expected " + std::to_string(status));
    if (status != kStatusOk) return;
    if (request.listed) cpu::list_to_mask(rows, kBlocks, words.data());
    const auto count = static_cast<int64_t>(passes.count());
    if (request.passing != count)
        fail(set, std::to_string(request.passing) + " rows pass, expected " + std::to_string(count));
    for (int64_t row = 0; row < kRows; ++row) {
        const bool expected = row < kItems && passes[static_cast<size_t>(row)];
        if (has_row(words.data(), row) != expected)
            fail(set, "row " + std::to_string(row) + " should " + (expected ? "" : "not ") + "pass");
    }
}

}  // namespace
}  // namespace silvertriton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace silvertriton;
    static const std::vector<std::string> sets = [] {
        std::vector<std::string> found;
        for (const char* name : {"portable", "avx2", "avx512vnni", "neon", "neon-dotprod"}) try {
                force_instruction_set(name);
                found.emplace_back(name);
            } catch (const std::runtime_error&) {
            }
        return found;
    }();
    const std::vector<int64_t> program = Reader(data, size).program();
    // One set an input, chosen by its bytes: all of them would take as long again for little.
    const std::string& set = sets[size % sets.size()];
    force_instruction_set(set.c_str());
    check(program, set.c_str());
    return 0;
}
