// What TensorRT plugins have in common. A plugin is one launch of one kernel, whose arguments are pointers to its input
// tensors, then int32 sizes of what a request brings, then pointers to its output tensors. builder/export/plugins.py
// defines the plugins. What is the same for all requests is a tensor of int64, the last input. An output of no operator
// is scratch memory.
#pragma once

#include <cstdint>

#include "silvertriton/layout.h"

namespace silvertriton::cuda {

struct SearchNumbers {
    int64_t fingerprint, probes, candidates, max_candidates, exact_rows;
    int64_t dims, code_dims, reach, projects, by_row;
    int64_t items, features, terms, postings, bitmaps, numbers, buckets, blocks, clusters;
};

struct RescoreNumbers {
    int64_t rows, dims;
};

struct NeighboursNumbers {
    int64_t rows, items, width, most;
};

struct SelectNumbers {
    int64_t k;
};

struct DiverseNumbers {
    int64_t rows, dims, entries, groups;
    int64_t weight, novelty;  // the bits of two floats
    int64_t k;
};

}  // namespace silvertriton::cuda
