// torch.ops.silvertriton: checks arguments, allocates outputs, calls kernels/cpu or kernels/cuda. What is of CPUs alone
// is in register_cpu.cpp.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/operators.h"
#include "checks.h"
#include "cuda_call.h"
#include "data.h"
#include "empty.h"
#include "parallel.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kSplit = "rows and counts are int32; split the catalogue";

Dim groups_dim(const Dim& dims) {
    return Dim("P4", groups_of(dims.value()), "ceil(P / 4)");
}

void check_dims(const Checks& checks, const char* argument, const Dim& dims) {
    checks.range(argument, dims.value(), 1, kMaxDims, "beyond that the int32 sums could overflow");
}

// The tensors of the filter index as they stand in the schemas.
struct FilterTensors {
    const Tensor &feature_terms, &term_keys, &term_bitmap, &term_postings, &postings, &bitmaps, &feature_number,
        &number_values, &number_rows, &number_known, &number_bitmaps, &valid, &cluster_blocks, &ids, &item_rows;
};

// The small tables are checked at each call, the large ones where a program touches them.
FilterIndex filter_index(const Checks& checks, const FilterTensors& t, Dim& NB, Dim& C1) {
    Dim N("N"), NF("NF"), T("T"), NP("NP"), NBM("NBM"), NN("NN"), Q1("Q - 1");
    checks.tensor("valid", t.valid, ScalarType::Int, {&NB});
    checks.range("valid", NB.value(), 0, kMaxInt32 / kBlockRows, kSplit);
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("feature_number", t.feature_number, ScalarType::Int, {&NF});
    Dim NF1("NF + 1", NF.value() + 1, "feature_number");
    checks.tensor("feature_terms", t.feature_terms, ScalarType::Int, {&NF1});
    checks.tensor("term_keys", t.term_keys, ScalarType::Long, {&T});
    checks.tensor("term_bitmap", t.term_bitmap, ScalarType::Int, {&T});
    Dim T1("T + 1", T.value() + 1, "term_keys");
    checks.tensor("term_postings", t.term_postings, ScalarType::Long, {&T1});
    checks.tensor("postings", t.postings, ScalarType::Int, {&NP});
    checks.tensor("bitmaps", t.bitmaps, ScalarType::Int, {&NBM, &NB});
    checks.tensor("number_known", t.number_known, ScalarType::Int, {&NN});
    checks.tensor("number_values", t.number_values, ScalarType::Double, {&NN, &R});
    checks.tensor("number_rows", t.number_rows, ScalarType::Int, {&NN, &R});
    checks.tensor("number_bitmaps", t.number_bitmaps, ScalarType::Int, {&NN, &Q1, &NB});
    checks.tensor("cluster_blocks", t.cluster_blocks, ScalarType::Int, {&C1});
    checks.range("cluster_blocks", C1.value(), 1, kMaxInt32, Checks::kRebuild);
    checks.tensor("ids", t.ids, ScalarType::Long, {&R});
    checks.tensor("item_rows", t.item_rows, ScalarType::Int, {&N});
    if (checks.on_cuda()) {  // whose kernels check what they read: the host would have to wait for it
        checks.range("number_bitmaps", Q1.value(), 0, 65534, "quantiles are counted in 16 bits");
    } else {
        checks.offsets("cluster_blocks", in<int32_t>(t.cluster_blocks), C1.value() - 1, NB.value(), false);
        checks.offsets("feature_terms", in<int32_t>(t.feature_terms), NF.value(), T.value(), true);
        for (int64_t f = 0; f < NF.value(); ++f)
            checks.range("feature_number", in<int32_t>(t.feature_number)[f], -1, NN.value() - 1, Checks::kRebuild);
        for (int64_t n = 0; n < NN.value(); ++n)
            checks.range("number_known", in<int32_t>(t.number_known)[n], 0, R.value(), Checks::kRebuild);
    }

    FilterIndex index{};
    index.item_ids = {in<int64_t>(t.ids), in<int32_t>(t.item_rows), R.value(), N.value()};
    index.feature_terms = in<int32_t>(t.feature_terms);
    index.term_keys = in<int64_t>(t.term_keys);
    index.term_bitmap = in<int32_t>(t.term_bitmap);
    index.term_postings = in<int64_t>(t.term_postings);
    index.postings = in<int32_t>(t.postings);
    index.bitmaps = in<uint32_t>(t.bitmaps);
    index.feature_number = in<int32_t>(t.feature_number);
    index.number_values = in<double>(t.number_values);
    index.number_rows = in<int32_t>(t.number_rows);
    index.number_known = in<int32_t>(t.number_known);
    index.number_bitmaps = in<uint32_t>(t.number_bitmaps);
    index.valid = in<uint32_t>(t.valid);
    index.cluster_blocks = in<int32_t>(t.cluster_blocks);
    index.features = NF.value();
    index.terms = T.value();
    index.posting_count = NP.value();
    index.bitmap_count = NBM.value();
    index.numbers = NN.value();
    index.buckets = Q1.value() + 1;
    index.blocks = NB.value();
    index.clusters = C1.value() - 1;
    return index;
}

void check_program_width(const Checks& checks, const char* argument, const Dim& F) {
    checks.range(argument, F.value(), 2, kMaxInt32, "send the two words 0, 0 where there is no filter");
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor> filter_rows(const Tensor& program, const Tensor& ids, const Tensor& item_rows,
                                               const Tensor& feature_terms, const Tensor& term_keys,
                                               const Tensor& term_bitmap, const Tensor& term_postings,
                                               const Tensor& postings, const Tensor& bitmaps,
                                               const Tensor& feature_number, const Tensor& number_values,
                                               const Tensor& number_rows, const Tensor& number_known,
                                               const Tensor& number_bitmaps, const Tensor& valid,
                                               const Tensor& cluster_blocks, int64_t fingerprint) {
    const Checks checks("filter_rows", device);
    Dim B("B"), F("F"), NB("NB"), C1("C + 1");
    checks.tensor("program", program, ScalarType::Long, {&B, &F});
    check_program_width(checks, "program", F);
    const FilterIndex index =
        filter_index(checks,
                     {feature_terms, term_keys, term_bitmap, term_postings, postings, bitmaps, feature_number,
                      number_values, number_rows, number_known, number_bitmaps, valid, cluster_blocks, ids, item_rows},
                     NB, C1);

    Tensor words = empty(checks, {B.value(), NB.value()}, ScalarType::Int);
    Tensor passing = empty(checks, {B.value()}, ScalarType::Int);
    Tensor status = empty(checks, {B.value()}, ScalarType::Int);
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const cuda::FilterCall call{
            in<int64_t>(program),  B.value(),           F.value(), fingerprint, out<uint32_t>(words),
            out<int32_t>(passing), out<int32_t>(status)};
        const CudaCall on_device(checks, cuda::filter_rows_bytes(call));
        cuda::filter_rows(on_device.work(), call, index);
        return {words, passing, status};
    }
#endif
    std::vector<std::vector<int32_t>> rows(static_cast<size_t>(B.value()));
    std::vector<cpu::FilterRequest> requests;
    for (int64_t b = 0; b < B.value(); ++b)
        requests.push_back({in<int64_t>(program) + b * F.value(), out<uint32_t>(words) + b * index.blocks,
                            &rows[static_cast<size_t>(b)], false, 0, kStatusOk});
    cpu::filter_rows("filter_rows", requests.data(), B.value(), F.value(), fingerprint, index);
    parallel_for(B.value(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const cpu::FilterRequest& request = requests[static_cast<size_t>(b)];
            if (request.listed) cpu::list_to_mask(*request.rows, index.blocks, request.words);
            out<int32_t>(passing)[b] = static_cast<int32_t>(request.passing);
            out<int32_t>(status)[b] = request.status;
        }
    });
    return {words, passing, status};
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> search(
    const Tensor& query, const Tensor& filter, const Tensor& exclude, const Tensor& limits, const Tensor& status,
    const Tensor& projection, const Tensor& codes, const Tensor& scales, const Tensor& row_codes, const Tensor& vectors,
    const Tensor& ids, const Tensor& item_rows, const Tensor& centroid_codes, const Tensor& centroid_scales,
    const Tensor& centroid_spreads, const Tensor& reach, const Tensor& feature_terms, const Tensor& term_keys,
    const Tensor& term_bitmap, const Tensor& term_postings, const Tensor& postings, const Tensor& bitmaps,
    const Tensor& feature_number, const Tensor& number_values, const Tensor& number_rows, const Tensor& number_known,
    const Tensor& number_bitmaps, const Tensor& valid, const Tensor& cluster_blocks, int64_t fingerprint,
    int64_t probes, int64_t candidates, int64_t max_candidates, int64_t exact_rows) {
    const Checks checks("search", device);
    Dim B("B"), D("D"), D0("D or 0"), P("P"), F("F"), E("E"), G("G"), NB("NB"), C1("C + 1"), W0("R or 0"),
        two("2", 2, "the contract"), block("32", kBlockRows, "the layout"), four("4", 4, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    check_dims(checks, "query", D);
    checks.tensor("filter", filter, ScalarType::Long, {&B, &F});
    check_program_width(checks, "filter", F);
    checks.tensor("exclude", exclude, ScalarType::Long, {&B, &E});
    checks.tensor("limits", limits, ScalarType::Int, {&B, &two});
    checks.tensor("status", status, ScalarType::Int, {&B});
    checks.tensor("projection", projection, ScalarType::Float, {&D0, &P});
    check_dims(checks, "projection", P);
    const bool projects = D0.value() != 0;
    if (D0.value() != (projects ? D.value() : 0) || (!projects && P.value() != D.value()))
        checks.fail("projection", "[" + std::to_string(D0.value()) + ", " + std::to_string(P.value()) + "]",
                    "[D, P], or [0, D] for none, with D = " + std::to_string(D.value()) + " as in query",
                    Checks::kRebuild);
    Dim P4 = groups_dim(P);
    FilterIndex filters =
        filter_index(checks,
                     {feature_terms, term_keys, term_bitmap, term_postings, postings, bitmaps, feature_number,
                      number_values, number_rows, number_known, number_bitmaps, valid, cluster_blocks, ids, item_rows},
                     NB, C1);
    Dim R("R", filters.rows(), "32 NB"),
        CB("ceil(C / 32)", (filters.clusters + kBlockRows - 1) / kBlockRows, "cluster_blocks");
    checks.tensor("codes", codes, ScalarType::Char, {&NB, &P4, &block, &four});
    checks.tensor("scales", scales, ScalarType::Float, {&NB, &block});
    Dim words("W", RowCodes::width(P.value()), "P4 + 1 in whole fours");
    checks.tensor("row_codes", row_codes, ScalarType::Int, {&W0, &words});
    const bool by_row = W0.value() != 0;
    if (by_row && W0.value() != R.value())
        checks.fail("row_codes", std::to_string(W0.value()) + " rows",
                    "32 NB = " + std::to_string(R.value()) + ", or 0 for none", Checks::kRebuild);
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.tensor("centroid_codes", centroid_codes, ScalarType::Char, {&CB, &P4, &block, &four});
    checks.tensor("centroid_scales", centroid_scales, ScalarType::Float, {&CB, &block});
    checks.tensor("centroid_spreads", centroid_spreads, ScalarType::Float, {&CB, &block});
    checks.tensor("reach", reach, ScalarType::Float, {&G});
    checks.range("reach", G.value(), 1, 32, "one for each power of 4");
    checks.range("probes", probes, 0, kMaxInt32, "it is a number of clusters, or 0");
    checks.range("max_candidates", max_candidates, 0, kMaxInt32, "it is the most that a request may ask for");
    checks.range("candidates", candidates, 0, max_candidates, "it is at most max_candidates");
    checks.range("exact_rows", exact_rows, 0, kMaxInt32, "it is a number of rows");

    const SearchIndex index{
        {in<int8_t>(codes), in<float>(scales), NB.value(), P.value()},
        {in<int8_t>(centroid_codes), in<float>(centroid_scales), CB.value(), P.value()},
        {by_row ? in<int32_t>(row_codes) : nullptr},
        {in<uint16_t>(vectors), in<float>(scales), R.value(), D.value()},
        projects ? in<float>(projection) : nullptr,
        in<float>(centroid_spreads),
        in<float>(reach),
        G.value(),
        filters,
    };
    const SearchRequests requests{in<float>(query),    in<int64_t>(filter), in<int64_t>(exclude),
                                  in<int32_t>(limits), in<int32_t>(status), B.value(),
                                  F.value(),           E.value(),           fingerprint};
    const SearchLimits bounds{probes, candidates, max_candidates, exact_rows};
    // What requests ask for is on their device: the host does not wait for it.
    const int64_t width = checks.on_cuda() ? max_candidates : cpu::search_width(requests, bounds);
    Tensor rows = empty(checks, {B.value(), width}, ScalarType::Int);
    Tensor found = empty(checks, {B.value(), width}, ScalarType::Long);
    Tensor scores = empty(checks, {B.value(), width}, ScalarType::Float);
    Tensor stats = empty(checks, {B.value(), 4}, ScalarType::Int);
    Tensor first_status = empty(checks, {B.value()}, ScalarType::Int);
    const SearchResults results{out<int32_t>(rows),  out<int64_t>(found),        out<float>(scores),
                                out<int32_t>(stats), out<int32_t>(first_status), width};
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        checks.aligned("codes", codes);
        checks.aligned("scales", scales);
        checks.aligned("centroid_codes", centroid_codes);
        checks.aligned("centroid_scales", centroid_scales);
        checks.aligned("centroid_spreads", centroid_spreads);
        const CudaCall on_device(checks, cuda::search_bytes(requests, index, bounds));
        cuda::search(on_device.work(), requests, index, bounds, results);
        return {rows, found, scores, stats, first_status};
    }
#endif
    cpu::search(requests, index, bounds, results);
    return {rows, found, scores, stats, first_status};
}

template <Device device>
Tensor rescore(const Tensor& query, const Tensor& vectors, const Tensor& scales, const Tensor& rows) {
    const Checks checks("rescore", device);
    Dim B("B"), D("D"), NB("NB"), M("M"), block("32", kBlockRows, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    check_dims(checks, "query", D);
    checks.tensor("scales", scales, ScalarType::Float, {&NB, &block});
    checks.range("scales", NB.value(), 0, kMaxInt32 / kBlockRows, kSplit);
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.tensor("rows", rows, ScalarType::Int, {&B, &M});

    Tensor scores = empty(checks, {B.value(), M.value()}, ScalarType::Float);
    const RowVectors row_vectors{in<uint16_t>(vectors), in<float>(scales), R.value(), D.value()};
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const CudaCall on_device(checks, 0);
        cuda::rescore(on_device.work(), in<float>(query), row_vectors, in<int32_t>(rows), B.value(), M.value(),
                      out<float>(scores));
        return scores;
    }
#endif
    cpu::rescore(in<float>(query), row_vectors, in<int32_t>(rows), B.value(), M.value(), out<float>(scores));
    return scores;
}

template <Device device>
std::tuple<Tensor, Tensor> resolve_weights(const Tensor& task_weights, const Tensor& defaults, const Tensor& status) {
    const Checks checks("resolve_weights", device);
    Dim B("B"), T("T");
    checks.tensor("task_weights", task_weights, ScalarType::Float, {&B, &T});
    checks.tensor("defaults", defaults, ScalarType::Float, {&T});
    checks.tensor("status", status, ScalarType::Int, {&B});
    Tensor weights = empty(checks, {B.value(), T.value()}, ScalarType::Float);
    Tensor first_status = empty(checks, {B.value()}, ScalarType::Int);
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const CudaCall on_device(checks, 0);
        cuda::resolve_weights(on_device.work(), in<float>(task_weights), in<float>(defaults), in<int32_t>(status),
                              B.value(), T.value(), out<float>(weights), out<int32_t>(first_status));
        return {weights, first_status};
    }
#endif
    std::copy_n(in<int32_t>(status), B.value(), out<int32_t>(first_status));
    cpu::resolve_weights(in<float>(task_weights), in<float>(defaults), B.value(), T.value(), out<float>(weights),
                         out<int32_t>(first_status));
    return {weights, first_status};
}

template <Device device>
std::tuple<Tensor, Tensor> neighbour_scores(const Tensor& history, const Tensor& rows, const Tensor& ids,
                                            const Tensor& item_rows, const Tensor& neighbours, const Tensor& weights,
                                            int64_t most) {
    const Checks checks("neighbour_scores", device);
    Dim B("B"), L("L"), M("M"), R("R"), N("N"), J("J");
    checks.tensor("history", history, ScalarType::Long, {&B, &L});
    checks.tensor("rows", rows, ScalarType::Int, {&B, &M});
    checks.range("rows", M.value(), 0, kMaxNearCandidates, "beyond that their hashes have too few bits");
    checks.tensor("ids", ids, ScalarType::Long, {&R});
    checks.tensor("item_rows", item_rows, ScalarType::Int, {&N});
    checks.tensor("neighbours", neighbours, ScalarType::Int, {&N, &J});
    checks.tensor("weights", weights, ScalarType::Float, {&N, &J});
    checks.range("most", most, 0, kMaxInt32, "it is a number of items");

    Tensor sums = empty(checks, {B.value(), M.value()}, ScalarType::Float);
    Tensor maxima = empty(checks, {B.value(), M.value()}, ScalarType::Float);
    const ItemIds items{in<int64_t>(ids), in<int32_t>(item_rows), R.value(), N.value()};
    const Neighbours graph{in<int32_t>(neighbours), in<float>(weights), J.value()};
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const CudaCall on_device(checks, cuda::neighbour_scores_bytes(B.value(), M.value(), L.value()));
        cuda::neighbour_scores(on_device.work(), in<int64_t>(history), L.value(), in<int32_t>(rows), B.value(),
                               M.value(), items, graph, most, out<float>(sums), out<float>(maxima));
        return {sums, maxima};
    }
#endif
    cpu::neighbour_scores(in<int64_t>(history), L.value(), in<int32_t>(rows), B.value(), M.value(), items, graph, most,
                          out<float>(sums), out<float>(maxima));
    return {sums, maxima};
}

using Selected = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// What both selections take and give.
struct SelectTensors {
    const Tensor &values, &ids, &task_scores, &status;
};

Scored scored_candidates(const Checks& checks, const SelectTensors& t, int64_t k, Dim& B, Dim& M) {
    Dim T("T");
    checks.tensor("values", t.values, ScalarType::Float, {&B, &M});
    checks.tensor("ids", t.ids, ScalarType::Long, {&B, &M});
    checks.tensor("task_scores", t.task_scores, ScalarType::Float, {&B, &M, &T});
    checks.tensor("status", t.status, ScalarType::Int, {&B});
    checks.range("values", M.value(), 0, kMaxInt32, "positions are counted in int32");
    checks.range("k", k, 0, kMaxInt32, "it is the number of results");
    return {in<float>(t.values),
            in<int64_t>(t.ids),
            in<float>(t.task_scores),
            in<int32_t>(t.status),
            B.value(),
            M.value(),
            T.value(),
            k};
}

Selected empty_selected(const Checks& checks, const Scored& scored) {
    return {empty(checks, {scored.batch, scored.k}, ScalarType::Long),
            empty(checks, {scored.batch, scored.k}, ScalarType::Float),
            empty(checks, {scored.batch, scored.k, scored.task_count}, ScalarType::Float),
            empty(checks, {scored.batch}, ScalarType::Int)};
}

SelectResults results_of(const Selected& selected) {
    return {out<int64_t>(std::get<0>(selected)), out<float>(std::get<1>(selected)), out<float>(std::get<2>(selected)),
            out<int32_t>(std::get<3>(selected))};
}

template <Device device>
Selected select(const Tensor& values, const Tensor& ids, const Tensor& task_scores, const Tensor& status, int64_t k) {
    const Checks checks("select", device);
    Dim B("B"), M("M");
    const Scored scored = scored_candidates(checks, {values, ids, task_scores, status}, k, B, M);
    Selected selected = empty_selected(checks, scored);
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const CudaCall on_device(checks, cuda::select_bytes(scored));
        cuda::select(on_device.work(), scored, results_of(selected));
        return selected;
    }
#endif
    cpu::select(scored, results_of(selected));
    return selected;
}

template <Device device>
Selected select_diverse(const Tensor& values, const Tensor& ids, const Tensor& rows, const Tensor& task_scores,
                        const Tensor& status, const Tensor& vectors, const Tensor& inverse_lengths,
                        const Tensor& group_offsets, const Tensor& groups, const Tensor& most, double mmr, int64_t k) {
    const Checks checks("select_diverse", device);
    Dim B("B"), M("M"), R("R"), D("D"), NV("NV"), V("V");
    const Scored scored = scored_candidates(checks, {values, ids, task_scores, status}, k, B, M);
    checks.tensor("rows", rows, ScalarType::Int, {&B, &M});
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.range("vectors", R.value(), 0, kMaxInt32, kSplit);
    check_dims(checks, "vectors", D);
    if (!(mmr >= 0.0 && mmr <= 1.0))
        checks.fail("mmr", std::to_string(mmr), "0 to 1", "1 is relevance alone, less spreads results");
    const bool spreads = mmr < 1.0;
    Dim lengths("R", spreads ? R.value() : 0, spreads ? "vectors" : "mmr of 1, which reads none");
    checks.tensor("inverse_lengths", inverse_lengths, ScalarType::Float, {&lengths});
    checks.tensor("most", most, ScalarType::Int, {&V});
    checks.range("most", V.value(), 0, kMaxInt32, "groups are counted in int32");
    const bool grouped = V.value() > 0;
    Dim R1("R + 1", grouped ? R.value() + 1 : 0, grouped ? "vectors" : "most, which has no groups");
    checks.tensor("group_offsets", group_offsets, ScalarType::Long, {&R1});
    checks.tensor("groups", groups, ScalarType::Int, {&NV});

    const RowVectors units{in<uint16_t>(vectors), in<float>(inverse_lengths), R.value(), D.value()};
    const Groups rules{grouped ? in<int64_t>(group_offsets) : nullptr, in<int32_t>(groups), in<int32_t>(most),
                       NV.value(), V.value()};
    const Relevance relevance{static_cast<float>(mmr), static_cast<float>(1.0 - mmr)};
    Selected selected = empty_selected(checks, scored);
#if defined(ST_CUDA)
    if constexpr (device == Device::kCuda) {
        const CudaCall on_device(checks, cuda::select_diverse_bytes(scored, units, relevance));
        cuda::select_diverse(on_device.work(), scored, in<int32_t>(rows), units, rules, relevance,
                             results_of(selected));
        return selected;
    }
#endif
    cpu::select_diverse(scored, in<int32_t>(rows), units, rules, relevance, results_of(selected));
    return selected;
}

// What the CUDA kernels in this library were compiled for; empty: there are none.
std::string cuda_targets() {
#if defined(ST_CUDA)
    return ST_CUDA;
#else
    return "";
#endif
}

std::string instruction_set_name() {
    return instruction_set().name;
}

void force_instruction_set_by_name(const std::string& name) {
    force_instruction_set(name.c_str());
}

template <Device device, typename Library>
void register_all(Library& library) {
    library.impl("filter_rows", TORCH_BOX(&filter_rows<device>));
    library.impl("search", TORCH_BOX(&search<device>));
    library.impl("rescore", TORCH_BOX(&rescore<device>));
    library.impl("resolve_weights", TORCH_BOX(&resolve_weights<device>));
    library.impl("neighbour_scores", TORCH_BOX(&neighbour_scores<device>));
    library.impl("select", TORCH_BOX(&select<device>));
    library.impl("select_diverse", TORCH_BOX(&select_diverse<device>));
}

}  // namespace

// In the emulation, tests/kernels/cuda, the CUDA kernels take the place of those of the CPU.
STABLE_TORCH_LIBRARY_IMPL(silvertriton, CPU, library) {
#if defined(ST_EMULATION)
    register_all<Device::kCuda>(library);
#else
    register_all<Device::kCpu>(library);
#endif
}

#if defined(ST_CUDA) && !defined(ST_EMULATION)
STABLE_TORCH_LIBRARY_IMPL(silvertriton, CUDA, library) {
    register_all<Device::kCuda>(library);
}
#endif

// Operators without a tensor have no device to be dispatched on.
STABLE_TORCH_LIBRARY_IMPL(silvertriton, CompositeExplicitAutograd, library) {
    library.impl("cuda_targets", TORCH_BOX(&cuda_targets));
    library.impl("instruction_set", TORCH_BOX(&instruction_set_name));
    library.impl("force_instruction_set", TORCH_BOX(&force_instruction_set_by_name));
}

}  // namespace silvertriton
