"""Slow references of every operator: numpy on plain arrays, one request at a time, no index tricks.

They follow docs/operators.md and docs/filter-program.md, not the kernels. Float sums follow the one order that the
kernels promise (kernels/include/silvertriton/instruction_set.h), so results are compared for equality.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
SPARSE_ROWS = 2
LANES = 16
OK, MALFORMED, WRONG_FINGERPRINT = 0, 4, 5
AND, OR, NOT, ANY, ALL, RANGE, UNKNOWN = range(1, 8)

# A column of filter values: for keys one frozenset an item (empty: no value), for numbers float64 [N] (NaN: no value).
Column = list[frozenset[int]] | NDArray[np.float64]


class Malformed(Exception):
    """A program that breaks a rule of docs/filter-program.md."""


def head(opcode: int, feature: int = 0, count: int = 0) -> int:
    """The head word of an instruction as a signed 64-bit integer."""
    word = opcode | feature << 8 | count << 32
    return word - 2**64 if word >= 2**63 else word


def bits(value: float) -> int:
    """A float64 as the int64 with the same bits."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def run_program(
    words: Sequence[int], fingerprint: int, columns: Sequence[Column], items: int
) -> tuple[int, np.ndarray]:
    """Status, and which of the items pass ([N] bool)."""
    nothing = np.zeros(items, dtype=np.bool_)
    if words[1] == 0:
        return OK, ~nothing
    if words[0] != fingerprint:
        return WRONG_FINGERPRINT, nothing
    try:
        return OK, _run(words, columns, items)
    except Malformed:
        return MALFORMED, nothing


def _run(words: Sequence[int], columns: Sequence[Column], items: int) -> np.ndarray:
    length = words[1]
    if length < 0 or length > len(words) - 2 or length + 2 > 65536:
        raise Malformed
    code = list(words[2 : 2 + length])
    stack: list[np.ndarray] = []
    while code:
        word = code.pop(0)
        if word < 0:
            raise Malformed
        opcode, feature, count = word & 0xFF, word >> 8 & 0xFFFFFF, word >> 32
        if count > len(code):
            raise Malformed
        operands, code = code[:count], code[count:]
        if opcode in (AND, OR, NOT):
            if feature or count or len(stack) < (1 if opcode == NOT else 2):
                raise Malformed
            right = stack.pop()
            if opcode == NOT:
                stack.append(~right)
            else:
                left = stack.pop()
                stack.append(left & right if opcode == AND else left | right)
        else:
            if feature >= len(columns):
                raise Malformed
            stack.append(_leaf(opcode, columns[feature], operands, items))
        if len(stack) > 16:
            raise Malformed
    if len(stack) != 1:
        raise Malformed
    return stack[0]


def _leaf(opcode: int, column: Column, operands: Sequence[int], items: int) -> np.ndarray:
    is_number = isinstance(column, np.ndarray)
    if opcode == ANY and not is_number:
        return np.array([any(key in values for key in operands) for values in column], dtype=np.bool_)
    if opcode == ALL and not is_number:
        return np.array([all(key in values for key in operands) for values in column], dtype=np.bool_)
    if opcode == RANGE and is_number and len(operands) == 2:
        low, high = (struct.unpack("<d", struct.pack("<q", word))[0] for word in operands)
        if low != low or high != high:
            raise Malformed
        return (column >= low) & (column <= high)
    if opcode == UNKNOWN and not operands:
        if is_number:
            return np.isnan(column)
        return np.array([not values for values in column], dtype=np.bool_)
    raise Malformed


def quantize(query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [D] int64 and the query in units of its scale [D] float32."""
    query = np.where(np.isfinite(query), query, np.float32(0)).astype(np.float32)
    scale = np.float32(np.abs(query).max(initial=0)) / np.float32(127)
    units = np.clip(query / scale, -127, 127).astype(np.float32) if scale > 0 else np.zeros_like(query)
    return np.rint(units).astype(np.int64), units


def rows_of_blocks(codes: np.ndarray, dims: int) -> np.ndarray:
    """[NB, D4, 32, 4] codes as rows: [32 NB, D] int64."""
    blocks, groups = codes.shape[:2]
    return codes.transpose(0, 2, 1, 3).reshape(blocks * BLOCK, groups * 4)[:, :dims].astype(np.int64)


def dot(row: np.ndarray, query: np.ndarray) -> np.float32:
    """Dot product of a float16 row and a float32 query in the order of the contract."""
    lanes = np.zeros(LANES, dtype=np.float32)
    products = row.astype(np.float32) * query.astype(np.float32)
    for start in range(0, len(products), LANES):
        part = products[start : start + LANES]
        lanes[: len(part)] += part
    width = LANES // 2
    while width:
        lanes[:width] += lanes[width : 2 * width]
        width //= 2
    return np.float32(lanes[0])


def probe(
    query: np.ndarray,
    centroid_codes: np.ndarray,
    centroid_scales: np.ndarray,
    passing: np.ndarray,
    probes: int,
    candidates: int,
) -> list[int]:
    """The clusters taken, in order."""
    codes, _ = quantize(query)
    sums = rows_of_blocks(centroid_codes, len(query)) @ codes
    scores = sums.astype(np.float32) * centroid_scales.reshape(-1)
    taken: list[int] = []
    for cluster in sorted((c for c in range(len(passing)) if passing[c] > 0), key=lambda c: (-scores[c], c)):
        if len(taken) >= probes and passing[taken].sum() >= candidates:
            break
        taken.append(cluster)
    return taken


def scan(
    query: np.ndarray,
    index: dict[str, np.ndarray],
    words: np.ndarray,
    clusters: Sequence[int],
    candidates: int,
) -> tuple[list[int], int]:
    """The best rows in order, and how many were scored. `words` [NB] uint32."""
    codes, units = quantize(query)
    sums = rows_of_blocks(index["codes"], len(query)) @ codes
    scales = index["scales"].reshape(-1)
    found: list[tuple[float, int, int]] = []
    if candidates <= 0:
        return [], 0
    for cluster in clusters:
        for block in range(index["cluster_blocks"][cluster], index["cluster_blocks"][cluster + 1]):
            rows = [block * BLOCK + r for r in range(BLOCK) if int(words[block]) >> r & 1]
            for row in rows:
                if len(rows) <= SPARSE_ROWS:
                    score = dot(index["vectors"][row], units) * scales[row]
                else:
                    score = np.float32(sums[row]) * scales[row]
                found.append((-float(score), int(index["ids"][row]), row))
    found.sort()
    return [row for _, _, row in found[:candidates]], len(found)


def rescore(query: np.ndarray, vectors: np.ndarray, scales: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """[M] float32 scores."""
    flat = scales.reshape(-1)
    scores = [dot(vectors[row], query) * flat[row] if row >= 0 else -np.inf for row in rows]
    return np.array(scores, dtype=np.float32)


def top_k(scores: Sequence[float], ids: Sequence[int], k: int) -> list[int]:
    """Positions, -1 past the end."""
    ranked = sorted(
        (-(float("-inf") if score != score else float(score)), item, position)
        for position, (score, item) in enumerate(zip(scores, ids, strict=True))
        if item != -1
    )
    return ([position for _, _, position in ranked] + [-1] * k)[:k]
