"""A small index builder of the tests' own: random catalogues in, the tensors of docs/operators.md out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from tests.kernels.reference import ALL, AND, ANY, BLOCK, NOT, OR, RANGE, UNKNOWN, Column, bits, head

FINGERPRINT = -987_654_321_987_654_321


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


def quantize_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [N] float32, float16 rows [N, D] in units of them, codes [N, D] int8."""
    scales = (np.abs(vectors).max(1, initial=0) / np.float32(127)).astype(np.float32)
    units = np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0)
    return scales, units.astype(np.float16), np.rint(np.clip(units, -127, 127)).astype(np.int8)


def in_blocks(codes: np.ndarray) -> np.ndarray:
    """[R, D] int8 rows as [NB, D4, 32, 4]."""
    rows, dims = codes.shape
    groups = -(-dims // 4)
    padded = np.zeros((rows, groups * 4), dtype=np.int8)
    padded[:, :dims] = codes
    return np.ascontiguousarray(padded.reshape(rows // BLOCK, BLOCK, groups, 4).transpose(0, 2, 1, 3))


def item_index(vectors: np.ndarray, ids: np.ndarray, layout: Layout) -> dict[str, Tensor]:
    """Codes, scales, vectors, ids, cluster_blocks and valid."""
    scales, units, codes = quantize_rows(vectors)
    dims = vectors.shape[1]
    row = layout.row_of_item
    all_scales, all_ids = np.zeros(layout.rows, np.float32), np.full(layout.rows, -1, np.int64)
    all_units, all_codes = np.zeros((layout.rows, dims), np.float16), np.zeros((layout.rows, dims), np.int8)
    all_scales[row], all_ids[row], all_units[row], all_codes[row] = scales, ids, units, codes
    return {
        "codes": torch.from_numpy(in_blocks(all_codes)),
        "scales": torch.from_numpy(all_scales.reshape(-1, BLOCK)),
        "vectors": torch.from_numpy(all_units),
        "ids": torch.from_numpy(all_ids),
        "cluster_blocks": torch.from_numpy(layout.cluster_blocks),
        "valid": torch.from_numpy(pack(all_ids >= 0)),
    }


def centroid_index(centroids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Centroids [C, D] as codes [ceil(C / 32), D4, 32, 4] and scales [ceil(C / 32), 32]."""
    padded = np.zeros((-(-len(centroids) // BLOCK) * BLOCK, centroids.shape[1]), dtype=np.float32)
    padded[: len(centroids)] = centroids
    scales, _, codes = quantize_rows(padded)
    return torch.from_numpy(in_blocks(codes)), torch.from_numpy(scales.reshape(-1, BLOCK))


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


def random_program(random: Random, columns: list[Column], leaves: int) -> list[int]:
    """Code words of a well-formed random expression of about that many leaves, deeper operand first."""

    def leaf() -> list[int]:
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
