// The schemas of torch.ops.silvertriton; docs/operators.md states shapes, dtypes and meaning.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(silvertriton, library) {
    library.def(
        "filter_rows(Tensor program, Tensor exclude, Tensor feature_terms, Tensor term_keys, Tensor term_bitmap, "
        "Tensor term_postings, Tensor postings, Tensor bitmaps, Tensor feature_number, Tensor number_values, "
        "Tensor number_rows, Tensor number_known, Tensor number_bitmaps, Tensor valid, Tensor cluster_blocks, "
        "int fingerprint) -> (Tensor words, Tensor passing, Tensor status)");
    library.def(
        "probe(Tensor query, Tensor centroid_codes, Tensor centroid_scales, Tensor passing, Tensor probes, "
        "Tensor candidates) -> (Tensor clusters, Tensor probed)");
    library.def(
        "scan(Tensor query, Tensor codes, Tensor scales, Tensor vectors, Tensor ids, Tensor cluster_blocks, "
        "Tensor words, Tensor clusters, Tensor probed, Tensor candidates, int max_candidates) "
        "-> (Tensor rows, Tensor scanned)");
    library.def("rescore(Tensor query, Tensor vectors, Tensor scales, Tensor rows) -> Tensor scores");
    library.def("top_k(Tensor scores, Tensor ids, int k) -> Tensor positions");
    library.def("instruction_set() -> str");
    library.def("force_instruction_set(str name) -> ()");
}
