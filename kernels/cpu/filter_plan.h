// A filter program made ready to run: keys become bitmaps or posting lists, item ids a list of rows like any other,
// ranges become positions among sorted rows.
// It then runs in one of two ways, whichever costs less:
//   filter_mask.h    over mask words of the whole catalogue
//   filter_list.h    over the rows of a posting list that bounds the result
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "silvertriton/layout.h"
#include "silvertriton/program.h"

namespace silvertriton::cpu {

struct InconsistentIndex : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] void fail_inconsistent(const std::string& argument, const std::string& got, const std::string& expected);

// One term: a bitmap, or rows in ascending order.
struct Term {
    const uint32_t* bitmap;
    const int32_t* first;
    const int32_t* last;
};

// The rows at positions [first, last) of a number's sorted rows: those with low <= value <= high.
struct Range {
    int64_t number, first, last;
    double low, high;
    Term unknown;  // the rows without a value
};

struct Step {
    Opcode opcode;
    int64_t first, count;  // ANY, ALL: terms [first, first + count); RANGE: ranges[first]
};

struct Plan {
    ProgramShape shape;
    std::vector<Step> steps;
    std::vector<Term> terms;
    std::vector<Range> ranges;
    std::unique_ptr<int32_t[]> item_rows;  // of the terms that ITEMS stands for
};

// Validates and compiles one row of F >= 2 program words; a plan whose status is not 0 has no steps. Throws
// InconsistentIndex when the index contradicts itself.
Plan plan_filter(const int64_t* program, int64_t program_width, int64_t fingerprint, const FilterIndex& index);

}  // namespace silvertriton::cpu
