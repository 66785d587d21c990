"""Slow references of every operator: numpy on plain arrays, one request at a time, no index tricks.

They follow docs/operators.md and docs/filter-program.md, not the kernels. Float sums follow the one order that the
kernels promise (kernels/include/silvertriton/instruction_set.h), so results are compared for equality.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
LANES = 16
FIRST_ROUND = 4  # clusters considered before there is a worst candidate
OK, BAD_QUERY, MALFORMED, WRONG_FINGERPRINT, BAD_EXCLUDE, BAD_WEIGHTS, BAD_LIMITS = 0, 3, 4, 5, 6, 7, 8
AND, OR, NOT, ANY, ALL, RANGE, UNKNOWN, ITEMS = range(1, 9)

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
    words: Sequence[int], fingerprint: int, columns: Sequence[Column], ids: np.ndarray
) -> tuple[int, np.ndarray]:
    """Status, and which of the items pass ([N] bool). `ids` [N] int64: theirs, in the order of the columns."""
    nothing = np.zeros(len(ids), dtype=np.bool_)
    if words[1] == 0:
        return OK, ~nothing
    if words[0] != fingerprint:
        return WRONG_FINGERPRINT, nothing
    try:
        return OK, _run(words, columns, ids)
    except Malformed:
        return MALFORMED, nothing


def _run(words: Sequence[int], columns: Sequence[Column], ids: np.ndarray) -> np.ndarray:
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
        elif opcode == ITEMS:
            if feature:
                raise Malformed
            stack.append(np.isin(ids, np.array(operands, dtype=np.int64)))
        else:
            if feature >= len(columns):
                raise Malformed
            stack.append(_leaf(opcode, columns[feature], operands))
        if len(stack) > 16:
            raise Malformed
    if len(stack) != 1:
        raise Malformed
    return stack[0]


def _leaf(opcode: int, column: Column, operands: Sequence[int]) -> np.ndarray:
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


def quantize(query: np.ndarray, projection: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes [P] int64 of the projected query, and the query in units of the one scale of both, [D] float32.

    `projection` [D, P], or None or [0, D] for none. The query is divided first, so that its projection is finite.
    """
    query = np.where(np.isfinite(query), query, np.float32(0)).astype(np.float32)
    largest = np.abs(query).max(initial=np.float32(0))
    if projection is None or len(projection) == 0:
        units = _in_units(query, largest)
        return np.rint(units).astype(np.int64), units
    units = _in_units(query, largest)
    projected = np.zeros(projection.shape[1], dtype=np.float32)
    for component, row in zip(units, projection, strict=True):
        projected = projected + component * row  # float32 arrays: both steps round
    largest = np.abs(projected).max(initial=np.float32(127 if largest > 0 else 0))
    return np.rint(_in_units(projected, largest)).astype(np.int64), _in_units(units, largest)


def _in_units(vector: np.ndarray, largest: np.float32) -> np.ndarray:
    """The vector divided by its scale, float32 and at most 127 in magnitude (a subnormal scale may lead beyond)."""
    scale = largest / np.float32(127)
    return np.clip(vector / scale, -127, 127).astype(np.float32) if scale > 0 else np.zeros_like(vector)


def rows_of_blocks(codes: np.ndarray, dims: int) -> np.ndarray:
    """[NB, P4, 32, 4] codes as rows: [32 NB, P] int64."""
    blocks, groups = codes.shape[:2]
    return codes.transpose(0, 2, 1, 3).reshape(blocks * BLOCK, groups * 4)[:, :dims].astype(np.int64)


def code_scores(codes: np.ndarray, scales: np.ndarray, query_codes: np.ndarray) -> np.ndarray:
    """[32 NB] float32: the sum of the code products, exact, times the row's scale."""
    sums = rows_of_blocks(codes, len(query_codes)) @ query_codes
    with np.errstate(over="ignore"):
        return sums.astype(np.float32) * scales.reshape(-1)


def dot(row: np.ndarray, query: np.ndarray) -> np.float32:
    """Dot product of a float16 row and a float32 query in the order of the contract."""
    lanes = np.zeros(LANES, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        products = row.astype(np.float32) * query.astype(np.float32)
        for start in range(0, len(products), LANES):
            part = products[start : start + LANES]
            lanes[: len(part)] += part
        width = LANES // 2
        while width:
            lanes[:width] += lanes[width : 2 * width]
            width //= 2
    return np.float32(lanes[0])


def sparse_rows(dims: int, code_dims: int) -> int:
    """Passing rows at most of a block that is scored from its vectors."""
    groups = -(-code_dims // 4)
    return (128 * groups + 128) // (2 * dims + 512)


def reach_at(reach: np.ndarray, items: int, passing: int) -> np.float32:
    """Standard deviations beyond a cluster's mean, where `passing` > 0 of the items pass; float32 throughout."""
    times = np.float32(items) / np.float32(passing)
    for g in range(len(reach) - 1):
        low, high = np.float32(4**g), np.float32(4 ** (g + 1))
        if times < high:
            return reach[g] + (reach[g + 1] - reach[g]) * ((times - low) / (high - low))
    return reach[-1]


def bounds(index: Mapping[str, np.ndarray], query_codes: np.ndarray, items: int, passing: int) -> np.ndarray:
    """What rows of each cluster may score, [C] float32, in units of the query's scale."""
    length = np.sqrt(np.float32((query_codes**2).sum()))
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = reach_at(index["reach"], items, passing) * length * index["centroid_spreads"].reshape(-1)
        means = code_scores(index["centroid_codes"], index["centroid_scales"], query_codes)
        return (means + beyond)[: len(index["cluster_blocks"]) - 1]


def probe(
    bound: np.ndarray, passing: np.ndarray, scores: Sequence[np.ndarray], probes: int, candidates: int
) -> list[int]:
    """The clusters taken, in order. `bound` [C]; `passing` [C]: passing rows of each, and their `scores`."""
    order = [c for c in np.argsort(-bound, kind="stable").tolist() if bound[c] == bound[c]]
    taken: list[int] = []
    considered = 0
    while True:
        found = np.sort(np.concatenate([np.empty(0, np.float32), *[scores[c] for c in taken]]))
        floor = found[-candidates] if probes == 0 and 0 < candidates <= len(found) else -np.inf
        for _ in range(max(FIRST_ROUND, considered, probes - considered)):
            if probes > 0 and len(taken) >= probes and len(found) >= candidates:
                return taken
            if considered == len(order) or bound[order[considered]] < floor:
                return taken
            cluster = order[considered]
            considered += 1
            if passing[cluster] > 0:
                taken.append(cluster)
                found = np.concatenate([found, scores[cluster]])


def scan_scores(
    query_codes: np.ndarray, query_units: np.ndarray, index: Mapping[str, np.ndarray], passes: np.ndarray, sparse: int
) -> np.ndarray:
    """What rows are ranked by, [R] float32: passing ones in blocks of at most `sparse` by their vectors."""
    scores, scales = code_scores(index["codes"], index["scales"], query_codes), index["scales"].reshape(-1)
    in_block = passes.reshape(-1, BLOCK).sum(1)
    for row in np.flatnonzero(passes & (in_block <= sparse).repeat(BLOCK)).tolist():
        with np.errstate(over="ignore"):
            scores[row] = dot(index["vectors"][row], query_units) * scales[row]
    return scores


def rescore(query: np.ndarray, vectors: np.ndarray, scales: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """[M] float32 scores; NaN, which only an overflow makes, as -inf, and -0 as 0."""
    flat = scales.reshape(-1)
    with np.errstate(over="ignore"):
        products = [dot(vectors[row], query) * flat[row] if 0 <= row < len(flat) else -np.inf for row in rows]
    scores = np.array(products, dtype=np.float32)
    return np.where(np.isnan(scores), np.float32(-np.inf), scores + np.float32(0))


@dataclass(frozen=True)
class Catalogue:
    """What is searched: the tensors of docs/operators.md but for the filter index, whose place plain columns take."""

    index: Mapping[str, np.ndarray]
    columns: Sequence[Column]
    row_of_item: np.ndarray  # [N], items in the order of the columns
    fingerprint: int


@dataclass(frozen=True)
class Limits:
    """What a request gets that asks for nothing, and the most it may ask for."""

    probes: int
    candidates: int
    max_candidates: int
    exact_rows: int = 0


@dataclass(frozen=True)
class Request:
    """One request of a search."""

    query: np.ndarray  # [D] float32
    program: Sequence[int] = (0, 0)
    exclude: Sequence[int] = ()
    limits: tuple[int, int] = (0, 0)
    status: int = OK


@dataclass(frozen=True)
class Found:
    """The answer: candidates best first, without what comes past their end."""

    rows: list[int]
    ids: list[int]
    scores: np.ndarray
    stats: list[int]
    status: int


def search(request: Request, catalogue: Catalogue, limits: Limits) -> Found:
    """The whole search of one request."""
    index = catalogue.index
    rows, clusters = len(index["ids"]), len(index["cluster_blocks"]) - 1
    probes, candidates = request.limits

    filter_status, items_pass = run_program(
        request.program, catalogue.fingerprint, catalogue.columns, index["ids"][catalogue.row_of_item]
    )
    statuses = [request.status, filter_status]
    if not np.isfinite(request.query).all():
        statuses.append(BAD_QUERY)
    if any(item < -1 for item in request.exclude):
        statuses.append(BAD_EXCLUDE)
    if not 0 <= probes <= clusters or not 0 <= candidates <= limits.max_candidates:
        statuses.append(BAD_LIMITS)
    if wrong := [status for status in statuses if status != OK]:
        return Found([], [], np.empty(0, np.float32), [0, 0, 0, 0], min(wrong))
    probes, candidates = probes or limits.probes, candidates or limits.candidates

    passes = np.zeros(rows, dtype=np.bool_)
    passes[catalogue.row_of_item[items_pass]] = True
    passes &= ~np.isin(index["ids"], request.exclude)
    cluster_of_row = np.repeat(np.arange(clusters), np.diff(index["cluster_blocks"]) * BLOCK)
    passing = np.bincount(cluster_of_row[passes], minlength=clusters)
    total = int(passing.sum())

    codes, units = quantize(request.query, index["projection"])
    by_vector = request.program[1] != 0 and not len(index["row_codes"])
    sparse = sparse_rows(len(units), len(codes)) if by_vector else 0
    ranked_by = scan_scores(codes, units, index, passes, sparse)
    if total <= max(limits.exact_rows, candidates):
        taken = np.flatnonzero(passing).tolist()
    else:
        bound = bounds(index, codes, len(catalogue.row_of_item), total)
        of_cluster = [ranked_by[passes & (cluster_of_row == c)] for c in range(clusters)]
        taken = probe(bound, passing, of_cluster, min(probes, clusters), candidates)
    passes &= np.isin(cluster_of_row, taken)
    covered = int(passing[taken].sum())

    ranking = sorted((-float(ranked_by[row]), int(index["ids"][row]), row) for row in np.flatnonzero(passes).tolist())
    found = [row for _, _, row in ranking[:candidates]]
    scores = rescore(request.query, index["vectors"], index["scales"], found)
    ranked = select(scores, index["ids"][found], len(found))
    best = [found[at] for at in ranked]
    return Found(
        best, index["ids"][best].tolist(), scores[ranked], [len(taken), total, covered, int(covered == total)], OK
    )


def resolve_weights(asked: np.ndarray, defaults: np.ndarray, status: int) -> tuple[np.ndarray, int]:
    """Weights [T] and status of one request."""
    infinite = [BAD_WEIGHTS] if np.isinf(asked).any() else []
    wrong = [code for code in (status, *infinite) if code != OK]
    return np.where(np.isfinite(asked), asked, defaults), min(wrong, default=OK)


def neighbour_scores(
    history: np.ndarray,
    rows: np.ndarray,
    ids: np.ndarray,
    item_rows: np.ndarray,
    neighbours: np.ndarray,
    weights: np.ndarray,
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and maxima of the weights of edges from the newest `most` items of one history to candidates."""
    place = {int(ids[row]): n for n, row in enumerate(item_rows)}
    newest = [item for item in history.tolist() if item >= 0][::-1][:most]
    sums, maxima = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    for item in newest:
        for row, weight in zip(neighbours[place[item]], weights[place[item]], strict=True) if item in place else ():
            if row < 0:
                break
            for m in np.flatnonzero(rows == row):
                sums[m] += weight
                maxima[m] = max(maxima[m], weight)
    return sums, maxima


def rerank(
    query: np.ndarray,
    history: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    vectors: np.ndarray,
    scales: np.ndarray,
    items: np.ndarray,
    ids: np.ndarray,
    item_rows: np.ndarray,
    neighbours: np.ndarray,
    weights: np.ndarray,
    user: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    output: np.ndarray,
    most: int,
    tasks: int,
) -> np.ndarray:
    """Logits [M, T] of one request's candidates, float64; arguments as those of the operator, without the batch."""
    held = set(ids[item_rows].tolist())
    known = sum(item in held for item in [item for item in history.tolist() if item >= 0][::-1][:most])
    sums, maxima = neighbour_scores(history, rows, ids, item_rows, neighbours, weights, most)
    root = np.sqrt(np.clip(known, 1, max(most, 1)))
    features = np.stack([scores, sums / root, maxima, np.log10(sums + 1e-3), np.log10(maxima + 1e-3)], 1)
    hidden, outputs = items.shape[1], output.shape[0] - 6
    dims = len(user) - 2
    base = np.log1p(known) * user[dims] + user[dims + 1] + query[:dims].astype(np.float64) @ user[:dims]
    of_rows = vectors[rows, :dims].astype(np.float64) * scales.reshape(-1)[rows, None]
    one = base[:hidden] + items[rows] + ((query[:dims] * of_rows) @ first[:dims] + features @ first[dims:])[:, :hidden]
    two = np.maximum(np.maximum(one, 0) @ second[:-1] + second[-1], 0)[:, :outputs]
    logits: np.ndarray = (two @ output[:outputs] + features @ output[outputs:-1] + output[-1])[:, :tasks]
    return logits


def select(values: np.ndarray, ids: np.ndarray, k: int) -> list[int]:
    """Positions of the k best candidates, best first."""
    ranked = sorted(
        (np.inf if np.isnan(value) else -float(value), item, position)
        for position, (value, item) in enumerate(zip(values, ids.tolist(), strict=True))
        if item != -1
    )
    return [position for _, _, position in ranked[:k]]


def select_diverse(
    values: np.ndarray,
    ids: np.ndarray,
    rows: Sequence[int],
    vectors: np.ndarray,
    inverse_lengths: np.ndarray,
    groups: Sequence[Sequence[int]],
    most: Sequence[int],
    mmr: float,
    k: int,
) -> list[int]:
    """Positions of the chosen candidates of one request, in order. `groups`: those of each row, or none at all."""
    there = [item if 0 <= row < len(vectors) else -1 for item, row in zip(ids.tolist(), rows, strict=True)]
    left = select(values, np.array(there, dtype=np.int64), len(there))  # best first: of equals the first wins
    relevance = _relevance(values, left)
    chosen: list[int] = []
    taken = [0] * len(most)
    while len(chosen) < k:
        fitting = [m for m in left if not groups or all(taken[group] < most[group] for group in groups[rows[m]])]
        if not fitting:
            break
        best = fitting[0]
        if mmr < 1 and best in relevance:
            competing = [m for m in fitting if m in relevance]
            scores = []
            for m in competing:
                similar = [_cosine(rows[m], rows[c], vectors, inverse_lengths) for c in chosen]
                nearest = max(similar, default=np.float32(0))
                scores.append(np.float32(mmr) * relevance[m] - np.float32(1 - mmr) * nearest)
            best = competing[int(np.argmax(scores))]
        chosen.append(best)
        left.remove(best)
        for group in groups[rows[best]] if groups else ():
            taken[group] += 1
    return chosen


def _relevance(values: np.ndarray, candidates: Sequence[int]) -> dict[int, np.float32]:
    """Of those candidates whose value is a number above -inf: the value scaled to [0, 1], float32."""
    finite = [float(values[m]) for m in candidates if np.isfinite(values[m])]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    relevance = {}
    for m in candidates:
        value = float(values[m])
        if value > -np.inf:  # not NaN either
            relevance[m] = np.float32((value - low) / (high - low) if high > low and value < np.inf else 1)
    return relevance


def _cosine(row: int, other: int, vectors: np.ndarray, inverse_lengths: np.ndarray) -> np.float32:
    """Of a row to one that is chosen, which is brought to length 1 first."""
    unit = vectors[other].astype(np.float32) * inverse_lengths[other]
    return np.float32(dot(vectors[row], unit) * inverse_lengths[row])
