// filter_rows: runs each request's program, as a mask over the whole catalogue or as a list of rows.

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "filter_list.h"
#include "filter_mask.h"
#include "filter_plan.h"
#include "operators.h"
#include "parallel.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton::cpu {
namespace {

// One request on its way.
struct Work {
    Plan plan;
    std::unique_ptr<MaskPlan> masks;  // null: done already
};

void start(FilterRequest& request, int64_t program_width, int64_t fingerprint, const FilterIndex& index, Work& work) {
    work.plan = plan_filter(request.program, program_width, fingerprint, index);
    request.status = work.plan.shape.status;
    request.rows->clear();
    request.listed = true;
    request.passing = 0;
    if (request.status != kStatusOk) return;
    const Bound bound = bound_of(work.plan, index);
    if (list_is_cheaper(work.plan, index, bound)) {
        list_rows(work.plan, index, bound, *request.rows);
        request.passing = static_cast<int64_t>(request.rows->size());
        return;
    }
    request.listed = false;
    work.masks = std::make_unique<MaskPlan>(work.plan, index);
}

void run(FilterRequest* requests, int64_t batch, int64_t program_width, int64_t fingerprint, const FilterIndex& index) {
    const InstructionSet& isa = instruction_set();
    std::vector<Work> works(static_cast<size_t>(batch));
    parallel_for(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            start(requests[b], program_width, fingerprint, index, works[static_cast<size_t>(b)]);
    });

    // Spans of whole chunks, so that a lone request too is spread over the threads.
    const int64_t chunks = std::max<int64_t>((index.blocks + kChunkWords - 1) / kChunkWords, 1);
    const int64_t spans = std::clamp<int64_t>((thread_count() + batch - 1) / std::max<int64_t>(batch, 1), 1, chunks);
    const int64_t span_words = (chunks + spans - 1) / spans * kChunkWords;
    std::vector<int64_t> passing(static_cast<size_t>(batch * spans), 0);
    parallel_for(batch * spans, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const Work& work = works[static_cast<size_t>(task / spans)];
            const int64_t span = task % spans;
            if (work.masks == nullptr || (work.masks->whole() && span > 0)) continue;
            const int64_t last = work.masks->whole() ? index.blocks : std::min((span + 1) * span_words, index.blocks);
            const int64_t first = std::min(span * span_words, last);
            passing[static_cast<size_t>(task)] =
                write_mask(*work.masks, index, isa, first, last, requests[task / spans].words);
        }
    });
    for (int64_t task = 0; task < batch * spans; ++task)
        requests[task / spans].passing += passing[static_cast<size_t>(task)];
}

}  // namespace

void filter_rows(const char* caller, FilterRequest* requests, int64_t batch, int64_t program_width, int64_t fingerprint,
                 const FilterIndex& index) {
    try {
        run(requests, batch, program_width, fingerprint, index);
    } catch (const InconsistentIndex& error) {
        throw std::runtime_error(std::string("silvertriton::") + caller + ": " + error.what());
    }
}

void list_to_mask(const std::vector<int32_t>& rows, int64_t blocks, uint32_t* words) {
    std::fill_n(words, blocks, 0u);
    for (const int32_t row : rows) words[row / kBlockRows] |= 1u << (row % kBlockRows);
}

}  // namespace silvertriton::cpu
