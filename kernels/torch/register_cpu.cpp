// The operators of torch.ops.silvertriton that are of CPUs alone. On a GPU the network does the same in torch's
// operators: builder/network.

#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/operators.h"
#include "checks.h"
#include "data.h"
#include "empty.h"

namespace silvertriton {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor lookup(const Tensor& keys, const Tensor& asked) {
    const Checks checks("lookup", Device::kCpu);
    Dim V("V"), A("A");
    checks.tensor("keys", keys, ScalarType::Long, {&V});
    checks.tensor("asked", asked, ScalarType::Long, {&A});
    Tensor slots = empty(checks, {A.value()}, ScalarType::Long);
    cpu::lookup(in<int64_t>(keys), V.value(), in<int64_t>(asked), A.value(), out<int64_t>(slots));
    return slots;
}

Dim padded(const char* letter, int64_t size, const char* origin) {
    return Dim(letter, (size + 15) / 16 * 16, origin);
}

Tensor rerank(const Tensor& query, const Tensor& history, const Tensor& rows, const Tensor& scores,
              const Tensor& vectors, const Tensor& scales, const Tensor& items, const Tensor& ids,
              const Tensor& item_rows, const Tensor& neighbours, const Tensor& weights, const Tensor& user,
              const Tensor& first, const Tensor& second, const Tensor& output, int64_t most, int64_t tasks) {
    const Checks checks("rerank", Device::kCpu);
    Dim B("B"), D("D"), L("L"), M("M"), NB("NB"), H("H"), N("N"), J("J"), U("D + 2 or 2"), O("S + 6"),
        W2("S in whole 16s"), block("32", kBlockRows, "the layout");
    checks.tensor("query", query, ScalarType::Float, {&B, &D});
    checks.tensor("history", history, ScalarType::Long, {&B, &L});
    checks.tensor("rows", rows, ScalarType::Int, {&B, &M});
    checks.range("rows", M.value(), 0, kMaxNearCandidates, "beyond that their hashes have too few bits");
    checks.tensor("scores", scores, ScalarType::Float, {&B, &M});
    checks.tensor("scales", scales, ScalarType::Float, {&NB, &block});
    Dim R("R", NB.value() * kBlockRows, "32 NB");
    checks.tensor("vectors", vectors, ScalarType::Half, {&R, &D});
    checks.tensor("items", items, ScalarType::Half, {&R, &H});
    checks.tensor("ids", ids, ScalarType::Long, {&R});
    checks.tensor("item_rows", item_rows, ScalarType::Int, {&N});
    checks.tensor("neighbours", neighbours, ScalarType::Int, {&N, &J});
    checks.tensor("weights", weights, ScalarType::Float, {&N, &J});
    Dim padded_hidden = padded("H in whole 16s", H.value(), "items");
    checks.tensor("user", user, ScalarType::Float, {&U, &padded_hidden});
    const bool reads_vectors = U.value() != 2;
    Dim used("D + 2", D.value() + 2, "query");
    if (reads_vectors) checks.tensor("user", user, ScalarType::Float, {&used, &padded_hidden});
    const int64_t dims = reads_vectors ? D.value() : 0;
    Dim inputs("D + 5, or 5 as user has 2 rows,", dims + RerankLayers::kFeatures, "query"),
        hidden1("H + 1", H.value() + 1, "items");
    checks.tensor("first", first, ScalarType::Float, {&inputs, &padded_hidden});
    checks.tensor("second", second, ScalarType::Float, {&hidden1, &W2});
    checks.range("tasks", tasks, 1, kMaxInt32, "it is a number of tasks");
    Dim padded_tasks = padded("T in whole 16s", tasks, "tasks");
    checks.tensor("output", output, ScalarType::Float, {&O, &padded_tasks});
    const int64_t second_hidden = O.value() - RerankLayers::kFeatures - 1;
    checks.range("output", second_hidden, 0, W2.value(),
                 "it has a row for each output of the second layer, for each feature, and one of biases");
    checks.range("most", most, 0, kMaxInt32, "it is a number of items");
    if (W2.value() % 16 != 0)
        checks.fail("second", std::to_string(W2.value()) + " outputs", "a multiple of 16", "pad it with zeros");

    Tensor logits = empty(checks, {B.value(), M.value(), tasks}, ScalarType::Float);
    const RerankRequests requests{
        in<float>(query), in<int64_t>(history), in<int32_t>(rows), in<float>(scores), B.value(), M.value(), D.value(),
        L.value()};
    const RerankItems of_items{{in<uint16_t>(vectors), in<float>(scales), R.value(), D.value()},
                               in<uint16_t>(items),
                               {in<int64_t>(ids), in<int32_t>(item_rows), R.value(), N.value()},
                               {in<int32_t>(neighbours), in<float>(weights), J.value()},
                               most};
    const RerankLayers layers{
        in<float>(user), in<float>(first),      in<float>(second), in<float>(output),   dims, H.value(), second_hidden,
        tasks,           padded_hidden.value(), W2.value(),        padded_tasks.value()};
    cpu::rerank(requests, of_items, layers, out<float>(logits));
    return logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(silvertriton, CPU, library) {
    library.impl("lookup", TORCH_BOX(&lookup));
    library.impl("rerank", TORCH_BOX(&rerank));
}

}  // namespace silvertriton
