"""A small index builder of the tests' own: random catalogues in, the tensors of docs/operators.md out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from builder import ops
from tests.kernels import reference
from tests.kernels.reference import (
    ALL,
    AND,
    ANY,
    BLOCK,
    ITEMS,
    NOT,
    OR,
    RANGE,
    UNKNOWN,
    Column,
    Found,
    Limits,
    Request,
    bits,
    head,
)

FINGERPRINT = -987_654_321_987_654_321


def runs_cuda() -> bool:
    """Whether the operators run the CUDA kernels: on a GPU, or emulated in place of those of the CPU."""
    return ops.cuda_targets() == "emulation"


def pack(members: np.ndarray) -> np.ndarray:
    """[R] bool as mask words [NB] int32."""
    shifted = members.reshape(-1, BLOCK).astype(np.uint64) << np.arange(BLOCK, dtype=np.uint64)
    return shifted.sum(1, dtype=np.uint64).astype(np.uint32).view(np.int32)


def unpack(words: np.ndarray) -> np.ndarray:
    """Mask words [NB] int32 as [R] bool."""
    return ((words.view(np.uint32)[:, None] >> np.arange(BLOCK, dtype=np.uint32)) & 1).astype(np.bool_).reshape(-1)


@dataclass
class Layout:
    """Where items stand: `row_of_item` [N], `cluster_blocks` [C + 1], `blocks` NB."""

    row_of_item: np.ndarray
    cluster_blocks: np.ndarray
    blocks: int

    @property
    def rows(self) -> int:
        return self.blocks * BLOCK


def lay_out(cluster_of_item: np.ndarray, clusters: int) -> Layout:
    """Rows sorted by cluster, then by item; clusters padded to whole blocks."""
    sizes = np.bincount(cluster_of_item, minlength=clusters)
    cluster_blocks = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))]).astype(np.int32)
    row_of_item = np.empty(len(cluster_of_item), dtype=np.int64)
    for cluster in range(clusters):
        members = np.flatnonzero(cluster_of_item == cluster)
        row_of_item[members] = cluster_blocks[cluster] * BLOCK + np.arange(len(members))
    return Layout(row_of_item, cluster_blocks, int(cluster_blocks[-1]))


def filter_index(columns: list[Column], layout: Layout, buckets: int, frequent: int) -> dict[str, Tensor]:
    """The filter index. A term of more than `frequent` rows becomes a bitmap."""
    feature_terms, keys, term_bitmap, postings, bounds, bitmaps = [0], [], [], [], [0], []
    feature_number, values, sorted_rows, known, cumulative = [], [], [], [], []
    row = layout.row_of_item

    def mask(rows: np.ndarray) -> np.ndarray:
        members = np.zeros(layout.rows, dtype=np.bool_)
        members[rows] = True
        return pack(members)

    for column in columns:
        is_number = isinstance(column, np.ndarray)
        feature_number.append(len(values) if is_number else -1)
        sets: dict[int, list[int]] = {}
        for item, item_keys in enumerate([] if is_number else column):
            for key in item_keys:
                sets.setdefault(key, []).append(item)
        unknown = np.flatnonzero(np.isnan(column)) if is_number else [i for i, s in enumerate(column) if not s]
        for key, items in [(0, unknown), *sorted(sets.items())]:
            rows = np.sort(row[np.asarray(items, dtype=np.int64)])
            keys.append(key)
            term_bitmap.append(len(bitmaps) if len(rows) > frequent else -1)
            if len(rows) > frequent:
                bitmaps.append(mask(rows))
                rows = rows[:0]
            postings.append(rows)
            bounds.append(bounds[-1] + len(rows))
        feature_terms.append(len(keys))
        if is_number:
            by_row = np.full(layout.rows, np.nan)
            by_row[row] = column
            order = np.argsort(by_row, kind="stable")
            count = int((~np.isnan(by_row)).sum())
            step = -(-count // buckets)
            values.append(by_row)
            sorted_rows.append(np.where(np.arange(layout.rows) < count, order, -1))
            known.append(count)
            cumulative.append([mask(order[: min((j + 1) * step, count)]) for j in range(buckets - 1)])

    def tensor(parts: object, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.from_numpy(np.asarray(parts).reshape(shape)).to(dtype)

    blocks, rows_, numbers = layout.blocks, layout.rows, len(values)
    return {
        "feature_terms": torch.tensor(feature_terms, dtype=torch.int32),
        "term_keys": torch.tensor(keys, dtype=torch.int64),
        "term_bitmap": torch.tensor(term_bitmap, dtype=torch.int32),
        "term_postings": torch.tensor(bounds, dtype=torch.int64),
        "postings": torch.from_numpy(np.concatenate([np.empty(0, np.int64), *postings])).to(torch.int32),
        "bitmaps": tensor(bitmaps, torch.int32, len(bitmaps), blocks),
        "feature_number": torch.tensor(feature_number, dtype=torch.int32),
        "number_values": tensor(values, torch.float64, numbers, rows_),
        "number_rows": tensor(sorted_rows, torch.int32, numbers, rows_),
        "number_known": torch.tensor(known, dtype=torch.int32),
        "number_bitmaps": tensor(cumulative, torch.int32, numbers, buckets - 1, blocks),
    }


def quantize_rows(vectors: np.ndarray, projected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [N] float32 of both, float16 vectors [N, D] in units of them, codes [N, P] int8 of the projected."""
    largest = np.maximum(np.abs(vectors).max(1, initial=0), np.abs(projected).max(1, initial=0))
    scales = (largest / np.float32(127)).astype(np.float32)

    def in_units(rows: np.ndarray) -> np.ndarray:
        units = np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=scales[:, None] > 0)
        return np.clip(units, -127, 127)

    return scales, in_units(vectors).astype(np.float16), np.rint(in_units(projected)).astype(np.int8)


def in_blocks(codes: np.ndarray) -> np.ndarray:
    """[R, P] int8 rows as [NB, P4, 32, 4]."""
    rows, dims = codes.shape
    groups = -(-dims // 4)
    padded = np.zeros((rows, groups * 4), dtype=np.int8)
    padded[:, :dims] = codes
    return np.ascontiguousarray(padded.reshape(rows // BLOCK, BLOCK, groups, 4).transpose(0, 2, 1, 3))


def by_row(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[R, P] int8 rows and their scales [R] as [R, W] int32."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4)))
    words = np.concatenate([np.ascontiguousarray(padded).view(np.int32), scales.view(np.int32)[:, None]], axis=1)
    return np.pad(words, ((0, 0), (0, -words.shape[1] % 4)))


def item_index(
    vectors: np.ndarray, projected: np.ndarray, ids: np.ndarray, layout: Layout, row_codes: bool
) -> dict[str, Tensor]:
    """Codes, scales, vectors, ids and item_rows of items in ascending order of their ids."""
    parts = (*quantize_rows(vectors, projected), ids)
    scales, units, codes, row_ids = (np.zeros((layout.rows, *part.shape[1:]), part.dtype) for part in parts)
    row_ids[:] = -1
    for rows, part in zip((scales, units, codes, row_ids), parts, strict=True):
        rows[layout.row_of_item] = part
    return {
        "codes": torch.from_numpy(in_blocks(codes)),
        "scales": torch.from_numpy(scales.reshape(-1, BLOCK)),
        "row_codes": torch.from_numpy(by_row(codes, scales)[: None if row_codes else 0]),
        "vectors": torch.from_numpy(units),
        "ids": torch.from_numpy(row_ids),
        "item_rows": torch.from_numpy(layout.row_of_item.astype(np.int32)),
    }


def centroid_index(centroids: np.ndarray, spreads: np.ndarray) -> dict[str, Tensor]:
    """Centroids [C, P] and spreads [C] as codes [ceil(C / 32), P4, 32, 4], scales and spreads [ceil(C / 32), 32]."""
    padded = np.zeros((-(-len(centroids) // BLOCK) * BLOCK, centroids.shape[1]), dtype=np.float32)
    padded[: len(centroids)] = centroids
    scales, _, codes = quantize_rows(padded, padded)
    padded_spreads = np.zeros(len(padded), dtype=np.float32)
    padded_spreads[: len(spreads)] = spreads
    return {
        "centroid_codes": torch.from_numpy(in_blocks(codes)),
        "centroid_scales": torch.from_numpy(scales.reshape(-1, BLOCK)),
        "centroid_spreads": torch.from_numpy(padded_spreads.reshape(-1, BLOCK)),
    }


def random_projection(generator: np.random.Generator, dims: int, code_dims: int) -> np.ndarray:
    """[D, P] float32 with orthonormal columns."""
    return np.linalg.qr(generator.normal(size=(dims, code_dims)))[0].astype(np.float32)


def random_ids(generator: np.random.Generator, items: int) -> np.ndarray:
    """Distinct ids, ascending, with gaps, the smallest and the largest possible among them."""
    ids = generator.choice(2**40, size=items, replace=False) if items > 3 else np.arange(items)
    ids = np.sort(ids.astype(np.int64) * 2**22)
    ids[:1] = 0
    if items > 1:
        ids[-1] = 2**63 - 1
    return ids


class Items:
    """A catalogue as the tensors that `search` takes and as its reference takes it.

    Items are numbered in ascending order of their ids, which is another order than that of their rows. `cluster_of`
    [N], else clusters are random, and their `centroids` [C, P] and `spreads` [C] too. Codes are of the vectors
    themselves without `projection` [D, P] and without `code_dims`, the P of a random one; they lie row by row too with
    `row_codes`.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        columns: Sequence[Column] = (),
        *,
        seed: int = 0,
        clusters: int = 4,
        cluster_of: np.ndarray | None = None,
        code_dims: int = 0,
        projection: np.ndarray | None = None,
        centroids: np.ndarray | None = None,
        spreads: np.ndarray | None = None,
        reach: Sequence[float] = (1.0,),
        frequent: int = 8,
        row_codes: bool = True,
    ) -> None:
        generator = np.random.default_rng(seed)
        vectors = vectors.astype(np.float32)
        self.count, self.dims = vectors.shape
        self.clusters, self.columns = clusters, list(columns)
        self.layout = lay_out(
            generator.integers(max(clusters, 1), size=self.count) if cluster_of is None else cluster_of, clusters
        )
        self.ids = random_ids(generator, self.count)
        if code_dims:
            projection = random_projection(generator, self.dims, code_dims)
        elif projection is None:
            projection = np.empty((0, self.dims), dtype=np.float32)
        projected = vectors @ projection if len(projection) else vectors
        if centroids is None:
            centroids = generator.normal(size=(clusters, projected.shape[1])).astype(np.float32)
            centroids[clusters - clusters // 4 :] = centroids[:1]  # ties
        if spreads is None:
            spreads = generator.choice([0.0, 0.5, 1.0, generator.random()], size=clusters).astype(np.float32)
            spreads[clusters - clusters // 4 :] = spreads[:1]
        index = {
            "projection": torch.from_numpy(projection),
            **item_index(vectors, projected, self.ids, self.layout, row_codes),
            **centroid_index(centroids, spreads),
            "reach": torch.tensor(reach, dtype=torch.float32),
        }
        filters = {
            **filter_index(self.columns, self.layout, buckets=4, frequent=frequent),
            "valid": torch.from_numpy(pack(index["ids"].numpy() >= 0)),
            "cluster_blocks": torch.from_numpy(self.layout.cluster_blocks),
        }
        self.index, self.filters = index, filters
        self.filtering = {"ids": index["ids"], "item_rows": index["item_rows"], **filters, "fingerprint": FINGERPRINT}
        self._answers: dict[tuple[int, Limits], tuple[Request, Found]] = {}
        self.reference = reference.Catalogue(
            {name: tensor.numpy() for name, tensor in {**index, **filters}.items()},
            self.columns,
            self.layout.row_of_item,
            FINGERPRINT,
        )

    def arguments(self, requests: Sequence[Request], limits: Limits) -> dict[str, Any]:
        """The arguments of `search` in the order of its schema."""
        exclude = [[*request.exclude] for request in requests]
        widest = max(map(len, exclude), default=0)
        exclude = [[*items, *[-1] * (widest - len(items))] for items in exclude]
        programs = [[*request.program] for request in requests]
        longest = max(map(len, programs), default=2)
        programs = [[*words, *[-1] * (longest - len(words))] for words in programs]  # padding that must be ignored
        queries = np.array([request.query for request in requests], dtype=np.float32)
        batch = len(requests)
        return {
            "query": torch.from_numpy(queries.reshape(batch, self.dims)),
            "filter": torch.tensor(programs, dtype=torch.int64).reshape(batch, longest),
            "exclude": torch.tensor(exclude, dtype=torch.int64).reshape(batch, widest),
            "limits": torch.tensor([r.limits for r in requests], dtype=torch.int32).reshape(batch, 2),
            "status": torch.tensor([r.status for r in requests], dtype=torch.int32),
            **self.index,
            **self.filters,
            "fingerprint": FINGERPRINT,
            **vars(limits),
        }

    def check(self, requests: Sequence[Request], limits: Limits, note: str = "") -> list[Found]:
        """Search one batch, compare all of its results with the reference and return the reference's."""
        results = [tensor.numpy() for tensor in ops.search(**self.arguments(requests, limits))]
        answers = [self.answer(request, limits) for request in requests]
        asked = [request.limits[1] or limits.candidates for request in requests]
        width = max((count for count in asked if 0 <= count <= limits.max_candidates), default=0)
        if runs_cuda():  # the host does not wait for what requests ask for
            width = limits.max_candidates
        assert all(tensor.shape == (len(requests), width) for tensor in results[:3]), note
        for b, expected in enumerate(answers):
            where = f"{note}, request {b} of {len(requests)}"
            rows, ids, scores, stats, status = (tensor[b] for tensor in results)
            past = width - len(expected.rows)
            assert (int(status), stats.tolist()) == (expected.status, expected.stats), where
            assert rows.tolist() == expected.rows + [-1] * past, where
            assert ids.tolist() == expected.ids + [-1] * past, where
            np.testing.assert_array_equal(scores, [*expected.scores, *[-np.inf] * past], where)
        return answers

    def answer(self, request: Request, limits: Limits) -> Found:
        """The reference's; kept, since the same requests come again on every instruction set."""
        key = (id(request), limits)
        if key not in self._answers:
            self._answers[key] = request, reference.search(request, self.reference, limits)
        return self._answers[key][1]

    def queries(self, generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.normal(size=(count, self.dims)).astype(np.float32)


def random_columns(random: Random, items: int) -> list[Column]:
    """Between one and four columns of either kind, with missing values, ties, infinities and both zeros."""
    columns: list[Column] = []
    for _ in range(random.randint(1, 4)):
        if random.random() < 0.5:
            pool = random.choice(
                [[0.0, -0.0, 1.0, 2.0], [random.gauss(0, 1e3) for _ in range(items)], [-1e300, 5e-324]]
            )
            column = np.array([random.choice(pool) for _ in range(items)])
            column[np.array([random.random() < 0.2 for _ in range(items)], dtype=np.bool_)] = np.nan
            column[np.array([random.random() < 0.02 for _ in range(items)], dtype=np.bool_)] = np.inf
            columns.append(column)
        else:
            vocabulary = [random.randint(-(2**63), 2**63 - 1) for _ in range(random.randint(1, 12))] + [0, 7]
            most = random.choice([1, 3, 8])
            columns.append([frozenset(random.choices(vocabulary, k=random.randint(0, most))) for _ in range(items)])
    return columns


SOME = (0, 1, 1, 2, 3, 20, 300)


def random_program(random: Random, columns: list[Column], leaves: int, ids: Sequence[int] = ()) -> list[int]:
    """Code words of a well-formed random expression of about that many leaves, deeper operand first.

    `ids`: those of the items, for leaves that name some and others that no item has.
    """

    def leaf() -> list[int]:
        if ids and random.random() < 0.2:
            named = [random.choice([*ids, -1, -(2**63), random.getrandbits(62)]) for _ in range(random.choice(SOME))]
            return [head(ITEMS, 0, len(named)), *named]
        feature = random.randrange(len(columns))
        column = columns[feature]
        if random.random() < 0.1:
            return [head(UNKNOWN, feature)]
        if isinstance(column, np.ndarray):
            low, high = (random.choice([*column[:50], random.gauss(0, 1e3), -np.inf, np.inf]) for _ in range(2))
            low, high = (0.0 if bound != bound else float(bound) for bound in (low, high))
            if random.random() < 0.8:
                low, high = min(low, high), max(low, high)
            return [head(RANGE, feature, 2), bits(low), bits(high)]
        known = sorted(set().union(*column[:50])) or [1]
        keys = [random.choice([*known, 12345]) for _ in range(random.choice([0, 1, 1, 2, 3, 20]))]
        return [head(random.choice([ANY, ALL]), feature, len(keys)), *keys]

    def expression(budget: int) -> tuple[list[int], int]:
        if budget <= 1:
            code, depth = leaf(), 1
        else:
            split = random.randint(1, budget - 1)
            (first, depth), (second, other) = expression(split), expression(budget - split)
            if other > depth:
                first, second, depth, other = second, first, other, depth
            code, depth = [*first, *second, head(random.choice([AND, OR]))], max(depth, other + 1)
        if random.random() < 0.2:
            code = [*code, head(NOT)]
        return code, depth

    return expression(leaves)[0]


def program_rows(codes: list[list[int]], fingerprint: int = FINGERPRINT) -> Tensor:
    """Programs as one batch: [B, F] int64, padded with words that must be ignored."""
    width = max(len(code) for code in codes) + 2
    rows = [[fingerprint, len(code), *code] + [-1] * (width - 2 - len(code)) for code in codes]
    return torch.tensor(rows, dtype=torch.int64)


def words_of(code: Sequence[int], fingerprint: int = FINGERPRINT) -> list[int]:
    """A program with its fingerprint and length before the code."""
    return [fingerprint, len(code), *code]


def marks(*members: np.ndarray) -> list[Column]:
    """One feature for each of `members` [N] bool, by which `marked` lets just those items pass."""
    return [[frozenset([1]) if member else frozenset() for member in items] for items in members]


def marked(feature: int) -> list[int]:
    return words_of([head(ANY, feature, 1), 1])


def random_request(random: Random, generator: np.random.Generator, items: Items, most: int, trouble: float) -> Request:
    """A request with any of filter, exclusions and limits; each thing that can be wrong is, with that probability."""
    query = items.queries(generator, 1)[0]
    program, exclude, probes, candidates = [random.getrandbits(32), 0], [], 0, 0
    if random.random() < 0.7 and items.columns:
        program = words_of(random_program(random, items.columns, random.choice([1, 1, 2, 4]), items.ids.tolist()))
    if random.random() < 0.5:
        exclude = [random.choice([*items.ids[:: random.randint(1, 20)].tolist(), -1, 5]) for _ in range(40)]
        exclude += exclude[: random.randint(0, 5)]
    if random.random() < 0.7:
        probes, candidates = random.randint(0, items.clusters), random.randint(0, most)
    if random.random() < trouble:
        query[random.randrange(items.dims)] = random.choice([np.nan, np.inf, -np.inf])
    if random.random() < trouble:
        program = random.choice([[FINGERPRINT, 1, head(255)], [FINGERPRINT + 1, 1, 0], [FINGERPRINT, -1]])
    if random.random() < trouble:
        exclude = [*exclude, random.choice([-2, -(2**63)])]
    if random.random() < trouble:
        probes, candidates = random.choice([(-1, 0), (items.clusters + 1, 0), (0, -1), (1, most + 1), (2**31 - 1, 1)])
    status = random.choice([1, 2, 7, 9]) if random.random() < trouble else reference.OK
    return Request(query, program, exclude, (probes, candidates), status)
