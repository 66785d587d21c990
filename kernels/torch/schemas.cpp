// The schemas of torch.ops.silvertriton; docs/operators.md states shapes, dtypes and meaning.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(silvertriton, library) {
    library.def(
        "filter_rows(Tensor program, Tensor ids, Tensor item_rows, "
        "Tensor feature_terms, Tensor term_keys, Tensor term_bitmap, Tensor term_postings, Tensor postings, "
        "Tensor bitmaps, Tensor feature_number, Tensor number_values, Tensor number_rows, Tensor number_known, "
        "Tensor number_bitmaps, Tensor valid, Tensor cluster_blocks, int fingerprint) "
        "-> (Tensor words, Tensor passing, Tensor status)");
    library.def(
        "search(Tensor query, Tensor filter, Tensor exclude, Tensor limits, Tensor status, Tensor projection, "
        "Tensor codes, Tensor scales, Tensor row_codes, Tensor vectors, Tensor ids, Tensor item_rows, "
        "Tensor centroid_codes, Tensor centroid_scales, Tensor centroid_spreads, Tensor reach, "
        "Tensor feature_terms, Tensor term_keys, Tensor term_bitmap, Tensor term_postings, Tensor postings, "
        "Tensor bitmaps, Tensor feature_number, Tensor number_values, Tensor number_rows, Tensor number_known, "
        "Tensor number_bitmaps, Tensor valid, Tensor cluster_blocks, int fingerprint, int probes, "
        "int candidates, int max_candidates, int exact_rows) "
        "-> (Tensor rows, Tensor ids, Tensor scores, Tensor stats, Tensor status)");
    library.def("rescore(Tensor query, Tensor vectors, Tensor scales, Tensor rows) -> Tensor scores");
    library.def(
        "resolve_weights(Tensor task_weights, Tensor defaults, Tensor status) -> (Tensor weights, Tensor status)");
    library.def(
        "neighbour_scores(Tensor history, Tensor rows, Tensor ids, Tensor item_rows, Tensor neighbours, "
        "Tensor weights, int most) -> (Tensor sums, Tensor maxima)");
    library.def("lookup(Tensor keys, Tensor asked) -> Tensor slots");
    library.def(
        "rerank(Tensor query, Tensor history, Tensor rows, Tensor scores, Tensor vectors, Tensor scales, Tensor items, "
        "Tensor ids, Tensor item_rows, Tensor neighbours, Tensor weights, Tensor user, Tensor first, Tensor second, "
        "Tensor output, int most, int tasks) -> Tensor logits");
    library.def(
        "select(Tensor values, Tensor ids, Tensor task_scores, Tensor status, int k) "
        "-> (Tensor ids, Tensor scores, Tensor task_scores, Tensor count)");
    library.def(
        "select_diverse(Tensor values, Tensor ids, Tensor rows, Tensor task_scores, Tensor status, Tensor vectors, "
        "Tensor inverse_lengths, Tensor group_offsets, Tensor groups, Tensor most, float mmr, int k) "
        "-> (Tensor ids, Tensor scores, Tensor task_scores, Tensor count)");
    library.def("cuda_targets() -> str");
    library.def("instruction_set() -> str");
    library.def("force_instruction_set(str name) -> ()");
}
