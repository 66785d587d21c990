"""What a filter costs is known before it is sent."""

from __future__ import annotations

import pytest

from client import (
    Condition,
    Contract,
    F,
    FilterCost,
    LimitExceeded,
    Schema,
    UnknownName,
    compile_filter,
    everything,
    item_in,
)
from client import filter_cost as cost
from client.filters.compiler import MAX_WORDS


@pytest.mark.parametrize(
    ("condition", "words", "terms", "sets", "passes"),
    [
        (everything(), 2, 0, 0, 0),
        (F.genres == "War", 4, 1, 1, 3),
        (F.genres.any_of("War", "Noir", "Drama"), 6, 3, 1, 5),
        (F.genres.all_of("War", "Noir"), 5, 2, 1, 6),
        (~F.genres.is_unknown(), 4, 1, 1, 3),
        (F.year >= 1990, 5, 1, 1, 4),
        (F.year.is_in([1, 2, 3]), 13, 3, 2, 12),
        ((F.year > 1) & ((F.cast == 1) | (F.cast == 2)), 11, 3, 2, 10),
        (item_in([5, 6, 7]) & (F.year >= 1990), 10, 4, 2, 6),
        (F.title_id.is_in(range(MAX_WORDS)), MAX_WORDS + 3, MAX_WORDS, 1, MAX_WORDS + 2),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sizes_and_passes(schema: Schema, condition: Condition, words: int, terms: int, sets: int, passes: int) -> None:
    blocks = 1_000_000 // 32 + schema.clusters  # a cluster may end in a block that is not full
    ids = 3 if "item_in" in str(condition) else 0
    assert cost(condition, schema) == FilterCost(words, terms, sets, passes, None)
    assert cost(condition, schema, Contract(items=1_000_000)).blocks == passes * blocks + ids
    if words <= MAX_WORDS:
        assert words == len(compile_filter(condition, schema))


def test_a_cost_above_what_is_sent_is_told_too(schema: Schema) -> None:
    wanted = F.year.is_in(range(20_000))
    with pytest.raises(LimitExceeded, match=r"got 80,001 words, at most 65,536"):
        compile_filter(wanted, schema)
    assert cost(wanted, schema).words == 80_001


def test_what_does_not_fit_the_schema_has_no_cost(schema: Schema) -> None:
    with pytest.raises(UnknownName):
        cost(F.yaer > 1, schema)
