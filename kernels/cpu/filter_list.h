// Runs a plan over the few rows that can satisfy it at all: those of a rare term, say. Such a filter costs as much as
// it lets pass, whatever the size of the catalogue.
#pragma once

#include <vector>

#include "filter_plan.h"

namespace silvertriton::cpu {

struct RowSpan {
    const int32_t* first;
    const int32_t* last;
    bool of_number;  // not postings, but sorted by value
};

// Every row that satisfies a plan is among the rows of `spans`, `rows` in all. Not `exists`: no few rows bound it.
struct Bound {
    bool exists = false;
    bool ascending = false;  // one span of ascending rows
    int64_t rows = 0;
    std::vector<RowSpan> spans;
};

Bound bound_of(const Plan& plan, const FilterIndex& index);

// Whether going through the rows of the bound costs less than masks of the whole catalogue.
bool list_is_cheaper(const Plan& plan, const FilterIndex& index, const Bound& bound);

// Writes the rows that hold an item and satisfy the plan, ascending. Of a damaged index, postings that are no row or
// out of order are left out; throws InconsistentIndex for a row of a number that is none.
void list_rows(const Plan& plan, const FilterIndex& index, const Bound& bound, std::vector<int32_t>& rows);

}  // namespace silvertriton::cpu
