"""Kernel against interpreter, through the real index and the real compiler: random catalogues, random nested filters.

The plain-Python `client.matches` is the definition of what a filter means. Catalogues hold unknown values, empty
clusters, an item of 500 values, values every item has and values none has.
"""

from __future__ import annotations

import random
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
import torch

from builder import ops
from builder.data.columns import CategoryColumn, Column, NumberColumn, TagsColumn
from builder.index.blocks import arrange, pack_mask
from builder.index.filters import build_filters
from client import Condition, F, Feature, Schema, compile_filter, everything, item_in, matches
from client.hashing import UNKNOWN_KEY, string_key

FEATURES = (
    Feature("colour", "category", "string", filter=True),
    Feature("size", "category", "integer", filter=True),
    Feature("genres", "tags", "string", filter=True),
    Feature("marks", "tags", "integer", filter=True),
    Feature("price", "number", filter=True),
    Feature("released", "date", filter=True),
)
SCHEMA = Schema("test", (), FEATURES, ("score",), 0, 4, 10, 10, 7)
WORDS = ["red", "green", "blue", "ünïcode", "", "a b"]
FILTERS_A_CATALOGUE = 60


def random_items(rng: random.Random) -> list[dict[str, Any]]:
    items = []
    for item_id in range(rng.choice([1, 2, 31, 33, 100, 400])):
        item: dict[str, Any] = {
            "item_id": item_id,
            "colour": rng.choice([None, "red", "red", "red", "green", "ünïcode", "a b"]),
            "size": rng.choice([None, 7, 7, 7, 7, rng.randrange(-5, 5), 2**62]),
            "genres": rng.sample(WORDS, rng.randrange(0, 4)),
            "marks": [-1, *rng.sample(range(40), rng.randrange(0, 3))],  # every item has -1
            "price": rng.choice([None, 0.0, -0.0, 1.5, rng.gauss(0, 10), 1e300, -1e-300]),
            "released": rng.choice([None, float(rng.randrange(0, 2_000_000_000)), 86400.0]),
        }
        items.append(item)
    items[0]["marks"] = list(range(500))
    return items


def columns_of(items: list[dict[str, Any]]) -> list[Column]:
    columns: list[Column] = []
    for feature in FEATURES:
        values = [item[feature.name] for item in items]
        if feature.kind == "category":
            keys = [UNKNOWN_KEY if v is None else string_key(v) if isinstance(v, str) else v for v in values]
            columns.append(CategoryColumn(feature, np.array(keys, dtype=np.int64)))
        elif feature.kind == "tags":
            lists = [sorted({string_key(v) if isinstance(v, str) else v for v in tags}) for tags in values]
            offsets = np.concatenate([[0], np.cumsum([len(tags) for tags in lists])])
            flat = np.array([key for tags in lists for key in tags], dtype=np.int64)
            columns.append(TagsColumn(feature, offsets.astype(np.int64), flat))
        else:
            columns.append(NumberColumn(feature, np.array([np.nan if v is None else v for v in values])))
    return columns


def random_condition(rng: random.Random, depth: int) -> Condition:
    if depth == 0 or rng.random() < 0.25:
        return random_leaf(rng)
    if rng.random() < 0.3:
        return ~random_condition(rng, depth - 1)
    condition = random_condition(rng, depth - 1)
    for _ in range(rng.randrange(1, 4)):
        other = random_condition(rng, depth - 1)
        condition = condition & other if rng.random() < 0.5 else condition | other
    return condition


def random_leaf(rng: random.Random) -> Condition:
    words = rng.sample([*WORDS, "nobody has this"], rng.randrange(0, 4))
    marks = rng.sample([*range(45), -1, 499, 10**15], rng.randrange(0, 5))
    numbers = sorted(rng.choice([0.0, -0.0, 1.5, rng.gauss(0, 10), 1e300, -1e-300, 1e9]) for _ in range(2))
    return rng.choice(
        [
            everything(),
            F.colour.any_of(*words),
            F.colour == rng.choice(WORDS),
            F.colour.all_of(*words[:1]),
            F.size != rng.choice([7, 3, 2**62, 99]),
            F.size.is_in([7, -2, 3]),
            F.genres.any_of(*words),
            F.genres.all_of(*words),
            F.marks.any_of(*marks),
            F.marks.all_of(*marks),
            F.price.between(*(numbers if rng.random() < 0.8 else numbers[::-1])),
            F.price > numbers[0],
            F.price <= numbers[1],
            (F.price >= 1.5) & (F.price <= 1.5),
            F.released < datetime.fromtimestamp(rng.randrange(0, 2_000_000_000), timezone.utc),
            F.released >= "1970-01-02",
            F[rng.choice([feature.name for feature in FEATURES])].is_unknown(),
            item_in(rng.choices([*range(60), 10**12], k=rng.randrange(0, 40))),
        ]
    )


@pytest.mark.parametrize("seed", range(10))
def test_kernel_equals_interpreter(instruction_set: str, seed: int) -> None:
    rng = random.Random(seed)
    items = random_items(rng)
    labels = np.array([rng.choice([0, 2, 3, 6]) for _ in items], dtype=np.int32)  # clusters 1, 4 and 5 stay empty
    layout = arrange(labels, np.arange(len(items)), clusters=7)
    filters = build_filters(columns_of(items), layout).tensors()
    valid = torch.from_numpy(pack_mask(layout.item_of_row >= 0))
    cluster_blocks = torch.from_numpy(layout.cluster_blocks)
    conditions = [random_condition(rng, rng.randrange(0, 5)) for _ in range(FILTERS_A_CATALOGUE)]
    programs = [compile_filter(condition, SCHEMA) for condition in conditions]
    batch = np.zeros((len(programs), max(len(program) for program in programs)), dtype=np.int64)
    for row, program in enumerate(programs):
        batch[row, : len(program)] = program
    words, passing, status = ops.filter_rows(
        torch.from_numpy(batch),
        ids=torch.from_numpy(layout.item_of_row),
        item_rows=torch.from_numpy(layout.row_of_item.astype(np.int32)),
        **filters,
        valid=valid,
        cluster_blocks=cluster_blocks,
        fingerprint=SCHEMA.fingerprint,
    )
    assert status.tolist() == [0] * len(batch)
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little").astype(bool)
    counts = set()
    for row, condition in enumerate(conditions):
        found = sorted(layout.item_of_row[bits[row]].tolist())
        expected = [i for i, item in enumerate(items) if matches(condition, item, SCHEMA)]
        assert found == expected, f"seed {seed}: {condition}"
        assert passing[row] == len(expected), f"seed {seed}: {condition}"
        counts.add(len(expected))
    assert {0, len(items)} <= counts  # both extremes occurred
