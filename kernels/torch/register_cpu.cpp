// The CPU side of torch.ops.silvertriton: checks arguments, allocates outputs, calls kernels/cpu.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <string>
#include <tuple>

#include "checks.h"
#include "operators.h"
#include "silvertriton/instruction_set.h"

namespace silvertriton {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr const char* kSplit = "rows and counts are int32; split the catalogue";

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
    return torch::stable::empty({sizes.begin(), sizes.size()}, dtype, std::nullopt,
                                torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

template <typename T>
const T* in(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* out(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

Dim groups_dim(const Dim& dims) {
    return Dim("D4", groups_of(dims.value()), "ceil(D / 4)");
}

void check_dims(const Checks& checks, const char* argument, const Dim& dims) {
    checks.range(argument, dims.value(), 1, kMaxDims, "D beyond that could overflow the int32 sums");
}

std::tuple<Tensor, Tensor, Tensor> filter_rows(
    const Tensor& program, const Tensor& exclude, const Tensor& feature_terms, const Tensor& term_keys,
    const Tensor& term_bitmap, const Tensor& term_postings, const Tensor& postings, const Tensor& bitmaps,
    const Tensor& feature_number, const Tensor& number_values, const Tensor& number_rows, const Tensor& number_known,
    const Tensor& number_bitmaps, const Tensor& valid, const Tensor& cluster_blocks, int64_t fingerprint) {
    const Checks checks("filter_rows");
    Dim B("B"), F("F"), E("E"), NB("NB"), NF("NF"), T("T"), P("P"), NBM("NBM"), NN("NN"), Q1("Q - 1"), C1("C + 1");
    checks.tensor("program", program, ScalarType::Long, {&B, &F});
    checks.require(F.value() >= 2, "program", "F = " + std::to_string(F.value()), "F of at least 2",
                   "send the two words 0, 0 where there is no filter");
    checks.tensor("exclude", exclude, ScalarType::Int, {&B, &E});
    checks.tensor("valid", valid, ScalarType::Int, {&NB});
    checks.range("valid", NB.value(), 0, kMaxInt32 / kBlockRows, kSplit);
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("feature_number", feature_number, ScalarType::Int, {&NF});
    Dim NF1("NF + 1", NF.value() + 1, "feature_number");
    checks.tensor("feature_terms", feature_terms, ScalarType::Int, {&NF1});
    checks.tensor("term_keys", term_keys, ScalarType::Long, {&T});
    checks.tensor("term_bitmap", term_bitmap, ScalarType::Int, {&T});
    Dim T1("T + 1", T.value() + 1, "term_keys");
    checks.tensor("term_postings", term_postings, ScalarType::Long, {&T1});
    checks.tensor("postings", postings, ScalarType::Int, {&P});
    checks.tensor("bitmaps", bitmaps, ScalarType::Int, {&NBM, &NB});
    checks.tensor("number_known", number_known, ScalarType::Int, {&NN});
    checks.tensor("number_values", number_values, ScalarType::Double, {&NN, &R});
    checks.tensor("number_rows", number_rows, ScalarType::Int, {&NN, &R});
    checks.tensor("number_bitmaps", number_bitmaps, ScalarType::Int, {&NN, &Q1, &NB});
    checks.tensor("cluster_blocks", cluster_blocks, ScalarType::Int, {&C1});
    checks.require(C1.value() >= 1, "cluster_blocks", "no element", "C + 1 of them", Checks::kRebuild);

    // The index's small tables are checked at each call, its large ones where a program touches them.
    checks.offsets("cluster_blocks", in<int32_t>(cluster_blocks), C1.value() - 1, NB.value(), false);
    checks.offsets("feature_terms", in<int32_t>(feature_terms), NF.value(), T.value(), true);
    for (int64_t f = 0; f < NF.value(); ++f)
        checks.range("feature_number", in<int32_t>(feature_number)[f], -1, NN.value() - 1, Checks::kRebuild);
    for (int64_t n = 0; n < NN.value(); ++n)
        checks.range("number_known", in<int32_t>(number_known)[n], 0, R.value(), Checks::kRebuild);

    const cpu::FilterRequests requests{in<int64_t>(program), in<int32_t>(exclude), B.value(), F.value(), E.value(),
                                       fingerprint};
    FilterIndex index{};
    index.feature_terms = in<int32_t>(feature_terms);
    index.term_keys = in<int64_t>(term_keys);
    index.term_bitmap = in<int32_t>(term_bitmap);
    index.term_postings = in<int64_t>(term_postings);
    index.postings = in<int32_t>(postings);
    index.bitmaps = in<uint32_t>(bitmaps);
    index.feature_number = in<int32_t>(feature_number);
    index.number_values = in<double>(number_values);
    index.number_rows = in<int32_t>(number_rows);
    index.number_known = in<int32_t>(number_known);
    index.number_bitmaps = in<uint32_t>(number_bitmaps);
    index.valid = in<uint32_t>(valid);
    index.cluster_blocks = in<int32_t>(cluster_blocks);
    index.features = NF.value();
    index.terms = T.value();
    index.posting_count = P.value();
    index.bitmap_count = NBM.value();
    index.numbers = NN.value();
    index.buckets = Q1.value() + 1;
    index.blocks = NB.value();
    index.clusters = C1.value() - 1;

    Tensor words = empty({B.value(), NB.value()}, ScalarType::Int);
    Tensor passing = empty({B.value(), index.clusters}, ScalarType::Int);
    Tensor status = empty({B.value()}, ScalarType::Int);
    cpu::filter_rows(requests, index, out<uint32_t>(words), out<int32_t>(passing), out<int32_t>(status));
    return {words, passing, status};
}

std::tuple<Tensor, Tensor> probe(const Tensor& query, const Tensor& centroid_codes, const Tensor& centroid_scales,
                                 const Tensor& passing, const Tensor& probes, const Tensor& candidates) {
    const Checks checks("probe");
    Dim B("B"), D("D"), C("C"), rows("32", kBlockRows, "the layout"), four("4", 4, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    check_dims(checks, "query", D);
    Dim D4 = groups_dim(D);
    checks.tensor("passing", passing, ScalarType::Int, {&B, &C});
    Dim blocks("ceil(C / 32)", (C.value() + kBlockRows - 1) / kBlockRows, "passing");
    checks.tensor("centroid_codes", centroid_codes, ScalarType::Char, {&blocks, &D4, &rows, &four});
    checks.tensor("centroid_scales", centroid_scales, ScalarType::Float, {&blocks, &rows});
    checks.tensor("probes", probes, ScalarType::Int, {&B});
    checks.tensor("candidates", candidates, ScalarType::Int, {&B});

    Tensor clusters = empty({B.value(), C.value()}, ScalarType::Int);
    Tensor probed = empty({B.value()}, ScalarType::Int);
    const CodeBlocks centroids{in<int8_t>(centroid_codes), in<float>(centroid_scales), blocks.value(), D.value()};
    cpu::probe(in<float>(query), centroids, B.value(), C.value(), in<int32_t>(passing), in<int32_t>(probes),
               in<int32_t>(candidates), out<int32_t>(clusters), out<int32_t>(probed));
    return {clusters, probed};
}

std::tuple<Tensor, Tensor> scan(const Tensor& query, const Tensor& codes, const Tensor& scales, const Tensor& vectors,
                                const Tensor& ids, const Tensor& cluster_blocks, const Tensor& words,
                                const Tensor& clusters, const Tensor& probed, const Tensor& candidates,
                                int64_t max_candidates) {
    const Checks checks("scan");
    Dim B("B"), D("D"), NB("NB"), C("C"), block("32", kBlockRows, "the layout"), four("4", 4, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    check_dims(checks, "query", D);
    Dim D4 = groups_dim(D);
    checks.tensor("codes", codes, ScalarType::Char, {&NB, &D4, &block, &four});
    checks.range("codes", NB.value(), 0, kMaxInt32 / kBlockRows, kSplit);
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("scales", scales, ScalarType::Float, {&NB, &block});
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.tensor("ids", ids, ScalarType::Long, {&R});
    checks.tensor("words", words, ScalarType::Int, {&B, &NB});
    checks.tensor("clusters", clusters, ScalarType::Int, {&B, &C});
    Dim C1("C + 1", C.value() + 1, "clusters");
    checks.tensor("cluster_blocks", cluster_blocks, ScalarType::Int, {&C1});
    checks.tensor("probed", probed, ScalarType::Int, {&B});
    checks.tensor("candidates", candidates, ScalarType::Int, {&B});
    checks.range("max_candidates", max_candidates, 0, kMaxInt32, "it is the width of the result");
    checks.offsets("cluster_blocks", in<int32_t>(cluster_blocks), C.value(), NB.value(), false);

    const cpu::ScanRequests requests{in<float>(query),    in<uint32_t>(words),     in<int32_t>(clusters),
                                     in<int32_t>(probed), in<int32_t>(candidates), B.value(),
                                     max_candidates};
    const CodeBlocks items{in<int8_t>(codes), in<float>(scales), NB.value(), D.value()};
    const RowVectors row_vectors{in<uint16_t>(vectors), in<float>(scales), R.value(), D.value()};
    Tensor rows = empty({B.value(), max_candidates}, ScalarType::Int);
    Tensor scanned = empty({B.value()}, ScalarType::Int);
    cpu::scan(requests, items, row_vectors, in<int64_t>(ids), in<int32_t>(cluster_blocks), C.value(),
              out<int32_t>(rows), out<int32_t>(scanned));
    return {rows, scanned};
}

Tensor rescore(const Tensor& query, const Tensor& vectors, const Tensor& scales, const Tensor& rows) {
    const Checks checks("rescore");
    Dim B("B"), D("D"), NB("NB"), M("M"), block("32", kBlockRows, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    check_dims(checks, "query", D);
    checks.tensor("scales", scales, ScalarType::Float, {&NB, &block});
    checks.range("scales", NB.value(), 0, kMaxInt32 / kBlockRows, kSplit);
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.tensor("rows", rows, ScalarType::Int, {&B, &M});

    Tensor scores = empty({B.value(), M.value()}, ScalarType::Float);
    const RowVectors row_vectors{in<uint16_t>(vectors), in<float>(scales), R.value(), D.value()};
    cpu::rescore(in<float>(query), row_vectors, in<int32_t>(rows), B.value(), M.value(), out<float>(scores));
    return scores;
}

Tensor top_k(const Tensor& scores, const Tensor& ids, int64_t k) {
    const Checks checks("top_k");
    Dim B("B"), M("M");
    checks.tensor("scores", scores, ScalarType::Float, {&B, &M});
    checks.tensor("ids", ids, ScalarType::Long, {&B, &M});
    checks.range("scores", M.value(), 0, kMaxInt32, "positions are counted in int32");
    checks.range("k", k, 0, kMaxInt32, "it is the number of results");

    Tensor positions = empty({B.value(), k}, ScalarType::Long);
    cpu::top_k(in<float>(scores), in<int64_t>(ids), B.value(), M.value(), k, out<int64_t>(positions));
    return positions;
}

std::string instruction_set_name() {
    return instruction_set().name;
}

void force_instruction_set_by_name(const std::string& name) {
    force_instruction_set(name.c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(silvertriton, CPU, library) {
    library.impl("filter_rows", TORCH_BOX(&filter_rows));
    library.impl("probe", TORCH_BOX(&probe));
    library.impl("scan", TORCH_BOX(&scan));
    library.impl("rescore", TORCH_BOX(&rescore));
    library.impl("top_k", TORCH_BOX(&top_k));
}

// Operators without a tensor have no device to be dispatched on.
STABLE_TORCH_LIBRARY_IMPL(silvertriton, CompositeExplicitAutograd, library) {
    library.impl("instruction_set", TORCH_BOX(&instruction_set_name));
    library.impl("force_instruction_set", TORCH_BOX(&force_instruction_set_by_name));
}

}  // namespace silvertriton
