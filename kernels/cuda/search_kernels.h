// The kernels of a search, in the order in which they run.
#pragma once

#include "search.h"

namespace silvertriton::cuda {

void launch_prepare(Stream stream, const SearchRun& run);
void launch_bounds(Stream stream, const SearchRun& run);
void launch_choose(Stream stream, const SearchRun& run, int32_t phase);
void launch_scan(Stream stream, const SearchRun& run, int32_t phase);

}  // namespace silvertriton::cuda
