// Decoding and validation of filter programs; docs/filter-program.md is the contract.
//
// Everything here reads untrusted words: no read leaves the row, no arithmetic overflows, no recursion.
#pragma once

#include <cstdint>
#include <cstring>

#include "silvertriton/layout.h"

namespace silvertriton {

constexpr int64_t kMaxProgramWords = 65536;  // fingerprint, length and code
constexpr int kMaxSets = 16;                 // sets on the stack at once

enum class Opcode : int32_t { kAnd = 1, kOr = 2, kNot = 3, kAny = 4, kAll = 5, kRange = 6, kUnknown = 7, kItems = 8 };

struct Instruction {
    Opcode opcode;
    int32_t feature;
    int64_t count;
    const int64_t* operands;  // [count]
};

// What validation learns, so that the evaluator can size its buffers.
struct ProgramShape {
    int32_t status;        // kStatusOk, kStatusFilterMalformed or kStatusFilterFingerprint
    int32_t depth;         // most sets on the stack at once
    int64_t instructions;  // 0: every item passes
    int64_t operands;      // terms that ANY, ALL, UNKNOWN and ITEMS read
    int64_t ranges;
    int64_t items;  // operands of ITEMS
};

// Reads the instruction at code[position] and moves position past it; false when it does not fit before `length` or
// its opcode is unknown. `count` is compared with the words left, so that a huge one cannot wrap around.
ST_HOST_DEVICE inline bool read_instruction(const int64_t* code, int64_t length, int64_t& position, Instruction& out) {
    if (position >= length || code[position] < 0) return false;  // bit 63 is no part of the 31-bit count
    const uint64_t head = static_cast<uint64_t>(code[position]);
    const int64_t count = static_cast<int64_t>(head >> 32);
    const uint64_t opcode = head & 0xff;
    if (count > length - position - 1 || opcode < 1 || opcode > 8) return false;
    out.opcode = static_cast<Opcode>(opcode);
    out.feature = static_cast<int32_t>((head >> 8) & 0xffffff);
    out.count = count;
    out.operands = code + position + 1;
    position += 1 + count;
    return true;
}

ST_HOST_DEVICE inline double bound_of(int64_t word) {
    double bound;
    memcpy(&bound, &word, sizeof bound);
    return bound;
}

// Sets an instruction pops; it pushes one unless it is malformed (-1).
ST_HOST_DEVICE inline int pops_of(const Instruction& instruction, const int32_t* feature_number, int64_t features) {
    switch (instruction.opcode) {
        case Opcode::kAnd:
        case Opcode::kOr:
            return instruction.feature == 0 && instruction.count == 0 ? 2 : -1;
        case Opcode::kNot:
            return instruction.feature == 0 && instruction.count == 0 ? 1 : -1;
        case Opcode::kItems:
            return instruction.feature == 0 ? 0 : -1;
        default:
            break;
    }
    if (instruction.feature >= features) return -1;
    const bool is_number = feature_number[instruction.feature] >= 0;
    switch (instruction.opcode) {
        case Opcode::kAny:
        case Opcode::kAll:
            return is_number ? -1 : 0;
        case Opcode::kRange: {
            if (!is_number || instruction.count != 2) return -1;
            const double low = bound_of(instruction.operands[0]), high = bound_of(instruction.operands[1]);
            return low != low || high != high ? -1 : 0;  // NaN differs from itself
        }
        default:  // kUnknown
            return instruction.count == 0 ? 0 : -1;
    }
}

// Validates one row of F >= 2 program words. The fingerprint is looked at first: the words of a program compiled for
// another schema mean nothing, so nothing else about them is worth reporting.
ST_HOST_DEVICE inline ProgramShape check_program(const int64_t* words, int64_t width, int64_t fingerprint,
                                                 const int32_t* feature_number, int64_t features) {
    ProgramShape shape{kStatusOk, 0, 0, 0, 0, 0};
    const int64_t length = words[1];
    if (length == 0) return shape;
    const ProgramShape malformed{kStatusFilterMalformed, 0, 0, 0, 0, 0};
    if (words[0] != fingerprint) return ProgramShape{kStatusFilterFingerprint, 0, 0, 0, 0, 0};
    if (length < 0 || length > width - 2 || length > kMaxProgramWords - 2) return malformed;

    const int64_t* code = words + 2;
    Instruction instruction{};
    int sets = 0;
    for (int64_t position = 0; position < length;) {
        if (!read_instruction(code, length, position, instruction)) return malformed;
        const int pops = pops_of(instruction, feature_number, features);
        if (pops < 0 || pops > sets) return malformed;
        sets += 1 - pops;
        if (sets > kMaxSets) return malformed;
        if (sets > shape.depth) shape.depth = sets;
        shape.instructions += 1;
        switch (instruction.opcode) {
            case Opcode::kAny:
            case Opcode::kAll:
                shape.operands += instruction.count;
                break;
            case Opcode::kRange:
                shape.ranges += 1;
                break;
            case Opcode::kUnknown:
                shape.operands += 1;
                break;
            case Opcode::kItems:
                shape.operands += 1;
                shape.items += instruction.count;
                break;
            default:
                break;
        }
    }
    return sets == 1 ? shape : malformed;
}

}  // namespace silvertriton
