from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from client import Feature, Schema, SchemaError

# b2sum -l 64 of the JSON text that Schema.fingerprint documents
GOLDEN_FINGERPRINT = -3879996596485562582


def test_json_round_trip(schema: Schema, query_schema: Schema) -> None:
    assert Schema.from_json(schema.to_json()) == schema
    assert Schema.from_json(query_schema.to_json()) == query_schema


def test_fingerprint_is_of_the_filter_features_alone(schema: Schema) -> None:
    same = dataclasses.replace(schema, name="x", tasks=("one",), user_features=(), max_results=3)
    assert same.fingerprint == schema.fingerprint == GOLDEN_FINGERPRINT
    for position, feature in enumerate(schema.item_features):
        flipped = dataclasses.replace(feature, filter=not feature.filter)
        items = (*schema.item_features[:position], flipped, *schema.item_features[position + 1 :])
        assert dataclasses.replace(schema, item_features=items).fingerprint != schema.fingerprint
    backwards = dataclasses.replace(schema, item_features=schema.item_features[::-1])
    assert backwards.fingerprint != schema.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"max_results": 0},
        {"max_results": "20"},
        {"max_results": True},
        {"max_results": 2**31},
        {"clusters": None},
        {"history_length": -1},
        {"tasks": []},
        {"tasks": [1]},
        {"tasks": ["a", "a"]},
        {"tasks": 5},
        {"user_features": None},
        {"user_features": ["age"]},
        {"user_features": [{"name": "age"}]},
        {"user_features": [{"name": "", "kind": "number"}]},
        {"user_features": [{"name": 5, "kind": "number"}]},
        {"user_features": [{"name": "age", "kind": "float"}]},
        {"user_features": [{"name": "age", "kind": ["number"]}]},
        {"user_features": [{"name": "age", "kind": "number", "values": "integer"}]},
        {"user_features": [{"name": "age", "kind": "category"}]},
        {"user_features": [{"name": "age", "kind": "date"}]},
        {"user_features": [{"name": "history", "kind": "number"}]},
        {"user_features": [{"name": "a", "kind": "number"}, {"name": "a", "kind": "number"}]},
        {"item_features": [{"name": "a", "kind": "number"}, {"name": "a", "kind": "date"}]},
        {"query_dims": 8},
    ],
    ids=str,
)
def test_a_bad_schema_is_refused(schema: Schema, change: dict[str, Any]) -> None:
    raw = json.loads(schema.to_json()) | change
    with pytest.raises(SchemaError):
        Schema.from_json(json.dumps(raw))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Schema)])
def test_a_missing_field_is_refused(schema: Schema, name: str) -> None:
    raw = json.loads(schema.to_json())
    del raw[name]
    with pytest.raises(SchemaError, match=name):
        Schema.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '{"a": 1}', "[" * 100_000, "\0"])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(SchemaError):
        Schema.from_json(text)


def test_a_newer_version_says_what_to_do(schema: Schema) -> None:
    with pytest.raises(SchemaError, match="use a client of the artifact's release: pip install"):
        Schema.from_json(json.dumps(json.loads(schema.to_json()) | {"version": 99}))


def test_kind_and_values_must_agree() -> None:
    with pytest.raises(SchemaError, match="does not go with values None"):
        Feature("genres", "tags")
