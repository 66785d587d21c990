"""TensorRT plugins of the operators, ahead of time: each is one launch of one kernel, whose PTX becomes part of a plan.

A plugin takes what its operator takes (docs/operators.md), and last, where there are any, `numbers`: int64 of what is
the same for all requests. It gives what the operator gives, and last, where it needs some, scratch memory. Its kernel,
`silvertriton_plugin_<operator>` in kernels/cuda/plugins/<operator>.cu, takes pointers to the inputs, then `sizes` as
int32, then pointers to the outputs: TensorRT passes nothing else, and in this order (`tensorrt.plugin.aot_impl`).

TensorRT has no float64, and reads int8 as quantised. So of what belongs to the index, float64, int8 and float16 travel
as int64 and int32 words of the same bytes, and what is empty as one zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder import oplib
from builder.errors import BuilderError
from builder.nvcc import Nvcc, find_nvcc

Shape = tuple[Any, ...]
Sizes = Mapping[str, Any]
"""By name: ints, or of a request TensorRT's symbolic ones, which know +, * and //, of ints to the right too."""

AS_WORDS = {"float64": "int64", "int8": "int32", "float16": "int32"}
"""The type that weights of a type have in a plan."""

# Of a request's list of hits beside four times the candidates: kernels/cuda/alone.h, kSlack and kStepHits.
_MORE_HITS = 512 + 16384


@dataclass(frozen=True)
class Plugin:
    """`inputs`, by name the types of the operator's, of which `weights` belong to the index, the others to a request.

    `sizes`: the dims of inputs that vary, as (input, axis). `numbers` makes, from the shapes of the weights and the
    operator's numbers, those of the kernel, in the order of its struct (plugins/numbers.h). `outputs`: types and shapes
    of the operator's. `scratch`: int64 of scratch memory for each request, at least. `grid`: blocks, of `threads`.
    The last three of sizes and numbers.
    """

    operator: str
    inputs: Mapping[str, str]
    weights: frozenset[str]
    sizes: Mapping[str, tuple[str, int]]
    outputs: Mapping[str, tuple[str, Callable[[Sizes], Shape]]]
    threads: int
    grid: Callable[[Sizes], Any]
    numbers: Callable[[Mapping[str, Shape], Mapping[str, Any]], dict[str, int]] = lambda shapes, given: {}
    scratch: Callable[[Sizes], Any] | None = None

    @property
    def entry(self) -> str:
        return f"silvertriton_plugin_{self.operator}"

    def types(self, numbers: Mapping[str, int]) -> list[str]:
        """Of all inputs as they are in a plan."""
        types = [AS_WORDS.get(kind, kind) if name in self.weights else kind for name, kind in self.inputs.items()]
        return types + ["int64"] * bool(numbers)

    def results(self, sizes: Sizes) -> list[tuple[str, Shape]]:
        """Types and shapes of all outputs."""
        results = [(kind, shape(sizes)) for kind, shape in self.outputs.values()]
        if self.scratch is not None:
            results.append(("int64", (sizes["batch"], self.scratch(sizes))))
        return results

    def ptx(self) -> str:
        """The kernel, compiled by nvcc. Raises `BuilderError` where there is none."""
        return require_nvcc().ptx(oplib.PLUGINS / f"{self.operator}.cu", oplib.KERNELS / "include")


def require_nvcc() -> Nvcc:
    """The compiler of the plugins' kernels. Raises `BuilderError` where there is none."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuilderError(
            "there is no nvcc, whose PTX of the operators becomes part of the plan",
            where="--format tensorrt",
            remedy="Install CUDA's compiler, or set CUDA_HOME; --format tensorrt-plain needs none.",
        )
    return nvcc


def as_weights(array: NDArray[Any]) -> NDArray[Any]:
    """Weights [n] as a plan has them, of the same bytes, and of as many zeros as fill the last word."""
    flat = array.reshape(-1)
    kind = AS_WORDS.get(flat.dtype.name, flat.dtype.name)
    if flat.size == 0:
        return np.zeros(1, kind)
    in_word = np.dtype(kind).itemsize // flat.itemsize
    if flat.size % in_word != 0:
        flat = np.pad(flat, (0, -flat.size % in_word))
    return flat.view(kind)


def _words(*sizes: int) -> int:
    """int64 of arrays of these bytes, each on an address of its own (kernels/cuda/parts.h)."""
    return sum((size + 255) // 256 * 32 for size in sizes)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _bits(value: float) -> int:
    return int(struct.unpack("i", struct.pack("f", value))[0])


def _search_numbers(shapes: Mapping[str, Shape], given: Mapping[str, Any]) -> dict[str, int]:
    dims = shapes["vectors"][1]
    return {
        **{name: given[name] for name in ("fingerprint", "probes", "candidates", "max_candidates", "exact_rows")},
        "dims": dims,
        "code_dims": shapes["projection"][1],
        "reach": shapes["reach"][0],
        "projects": int(shapes["projection"][0] > 0),
        "by_row": int(shapes["row_codes"][0] > 0),
        "items": shapes["item_rows"][0],
        "features": shapes["feature_number"][0],
        "terms": shapes["term_keys"][0],
        "postings": shapes["postings"][0],
        "bitmaps": shapes["bitmaps"][0],
        "numbers": shapes["number_known"][0],
        "buckets": shapes["number_bitmaps"][1] + 1,
        "blocks": shapes["valid"][0],
        "clusters": shapes["cluster_blocks"][0] - 1,
    }


def _search_scratch(sizes: Sizes) -> Any:
    """As kernels/cuda/search_memory.h lays it out, excluded rows and slots of the program last."""
    dims, code_dims, clusters = sizes["dims"], sizes["code_dims"], sizes["clusters"]
    groups = -(-code_dims // 128) * 32
    hits = 4 * sizes["max_candidates"] + _MORE_HITS
    fixed = _words(
        *(20, 4 * groups, 4 * dims, 4 * code_dims, 4, 4 * clusters, 8 * _power_of_two(clusters)),
        *(4 * clusters, 4 * clusters + 4, 8 * hits, 4 * sizes["blocks"], 4, 4 * clusters),
    )
    return sizes["exclude_width"] + sizes["program_width"] + (fixed + 64)


def _diverse_numbers(shapes: Mapping[str, Shape], given: Mapping[str, Any]) -> dict[str, int]:
    (rows, dims), mmr = shapes["vectors"], given["mmr"]
    entries, groups = shapes["groups"][0], shapes["most"][0]
    weights = {"weight": _bits(mmr), "novelty": _bits(1.0 - mmr)}
    return {"rows": rows, "dims": dims, "entries": entries, "groups": groups, **weights, "k": given["k"]}


def _of_candidates(kind: str, width: str) -> tuple[str, Callable[[Sizes], Shape]]:
    return kind, lambda sizes: (sizes["batch"], sizes[width])


def _of_request(kind: str, *more: int) -> tuple[str, Callable[[Sizes], Shape]]:
    return kind, lambda sizes: (sizes["batch"], *more)


_SELECTED = {
    "ids": _of_candidates("int64", "k"),
    "scores": _of_candidates("float32", "k"),
    "task_scores": ("float32", lambda sizes: (sizes["batch"], sizes["k"], sizes["tasks"])),
    "count": _of_request("int32"),
}
_SELECTED_SIZES = {"batch": ("values", 0), "candidates": ("values", 1), "tasks": ("task_scores", 2)}
_FILTER_INDEX = {
    "feature_terms": "int32",
    "term_keys": "int64",
    "term_bitmap": "int32",
    "term_postings": "int64",
    "postings": "int32",
    "bitmaps": "int32",
    "feature_number": "int32",
    "number_values": "float64",
    "number_rows": "int32",
    "number_known": "int32",
    "number_bitmaps": "int32",
    "valid": "int32",
    "cluster_blocks": "int32",
}
_INDEX = {
    "projection": "float32",
    "codes": "int8",
    "scales": "float32",
    "row_codes": "int32",
    "vectors": "float16",
    "ids": "int64",
    "item_rows": "int32",
    "centroid_codes": "int8",
    "centroid_scales": "float32",
    "centroid_spreads": "float32",
    "reach": "float32",
    **_FILTER_INDEX,
}
_PLUGINS = (
    Plugin(
        "search",
        {"query": "float32", "filter": "int64", "exclude": "int64", "limits": "int32", "status": "int32", **_INDEX},
        frozenset(_INDEX),
        {"batch": ("query", 0), "program_width": ("filter", 1), "exclude_width": ("exclude", 1)},
        {
            "rows": _of_candidates("int32", "max_candidates"),
            "ids": _of_candidates("int64", "max_candidates"),
            "scores": _of_candidates("float32", "max_candidates"),
            "stats": _of_request("int32", 4),
            "status": _of_request("int32"),
        },
        512,
        lambda sizes: sizes["batch"],
        _search_numbers,
        _search_scratch,
    ),
    Plugin(
        "rescore",
        {"query": "float32", "vectors": "float16", "scales": "float32", "rows": "int32"},
        frozenset(("vectors", "scales")),
        {"batch": ("query", 0), "candidates": ("rows", 1)},
        {"scores": _of_candidates("float32", "candidates")},
        256,
        lambda sizes: (sizes["batch"] * sizes["candidates"] + 127) // 128,
        lambda shapes, given: {"rows": shapes["vectors"][0], "dims": shapes["vectors"][1]},
    ),
    Plugin(
        "resolve_weights",
        {"task_weights": "float32", "defaults": "float32", "status": "int32"},
        frozenset(("defaults",)),
        {"batch": ("task_weights", 0), "tasks": ("task_weights", 1)},
        {"weights": _of_candidates("float32", "tasks"), "status": _of_request("int32")},
        256,
        lambda sizes: (sizes["batch"] + 255) // 256,
    ),
    Plugin(
        "neighbour_scores",
        {"history": "int64", "rows": "int32"}
        | {"ids": "int64", "item_rows": "int32", "neighbours": "int32", "weights": "float32"},
        frozenset(("ids", "item_rows", "neighbours", "weights")),
        {"batch": ("history", 0), "history_width": ("history", 1), "candidates": ("rows", 1)},
        {"sums": _of_candidates("float32", "candidates"), "maxima": _of_candidates("float32", "candidates")},
        256,
        lambda sizes: sizes["batch"],
        lambda shapes, given: {
            "rows": shapes["ids"][0],
            "items": shapes["item_rows"][0],
            "width": shapes["neighbours"][1],
            "most": given["most"],
        },
        lambda sizes: sizes["candidates"] * 2 + sizes["history_width"] + 64,
    ),
    Plugin(
        "select",
        {"values": "float32", "ids": "int64", "task_scores": "float32", "status": "int32"},
        frozenset(),
        _SELECTED_SIZES,
        _SELECTED,
        512,
        lambda sizes: sizes["batch"],
        lambda shapes, given: {"k": given["k"]},
        lambda sizes: sizes["candidates"] * 2,
    ),
    Plugin(
        "select_diverse",
        {"values": "float32", "ids": "int64", "rows": "int32", "task_scores": "float32", "status": "int32"}
        | {"vectors": "float16", "inverse_lengths": "float32"}
        | {"group_offsets": "int64", "groups": "int32", "most": "int32"},
        frozenset(("vectors", "inverse_lengths", "group_offsets", "groups", "most")),
        _SELECTED_SIZES,
        _SELECTED,
        256,
        lambda sizes: sizes["batch"],
        _diverse_numbers,
        lambda sizes: sizes["candidates"] * 4 + (_words(4 * sizes["dims"]) + 160),
    ),
)
PLUGINS = {plugin.operator: plugin for plugin in _PLUGINS}
"""By operator."""
