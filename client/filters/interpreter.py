"""What a filter means, in plain Python: the definition that the compiler and every kernel are tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client._values import instant, item_ids, key_function, number
from client.errors import InvalidValue, UnknownName, unknown_name
from client.filters.conditions import AllOf, And, AnyOf, Condition, ItemIn, Not, Or, Range, Unknown
from client.schema import Feature, Schema


def matches(condition: Condition, item: Mapping[str, Any], schema: Schema) -> bool:
    """Say whether an item satisfies a condition.

    `item` maps feature names to values: a category's value, a collection of tags, a number, a date (also as seconds
    since 1970-01-01 UTC), and "item_id" to its id, which only `item_in` needs. A feature that is absent, None, NaN or
    an empty collection has no value.

    Raises `UnknownName` and `InvalidValue` where `compile_filter` does, unless the answer is found before.
    """
    if isinstance(condition, And):
        return all(matches(operand, item, schema) for operand in condition.operands)
    if isinstance(condition, Or):
        return any(matches(operand, item, schema) for operand in condition.operands)
    if isinstance(condition, Not):
        return not matches(condition.operand, item, schema)
    if isinstance(condition, ItemIn):
        if "item_id" not in item:
            raise InvalidValue(f"filter {condition!r}: the item has no 'item_id' to compare")
        return item["item_id"] in item_ids("item_in", condition.item_ids).tolist()
    if not isinstance(condition, AnyOf | AllOf | Range | Unknown):
        raise InvalidValue(f"filter: got {condition!r}, expected a condition made with F")

    feature = filter_feature(condition.feature, schema)
    values = item_values(feature, item.get(feature.name))

    if isinstance(condition, Unknown):
        return len(values) == 0
    if isinstance(condition, AnyOf):
        return any(operand(feature, wanted) in values for wanted in condition.values)
    if isinstance(condition, AllOf):
        require_kind(condition, feature, "category", "tags")
        return all(operand(feature, wanted) in values for wanted in condition.values)

    require_kind(condition, feature, "number", "date")
    low = float("-inf") if condition.low is None else operand(feature, condition.low)
    high = float("inf") if condition.high is None else operand(feature, condition.high)
    above = any(value > low if condition.low_open else value >= low for value in values)  # at most one value
    below = any(value < high if condition.high_open else value <= high for value in values)
    return above and below


def filter_feature(name: str, schema: Schema) -> Feature:
    """The feature that a condition names. Raises `UnknownName` for one that does not exist or cannot be filtered by."""
    for feature in schema.filter_features:
        if feature.name == name:
            return feature
    if any(feature.name == name for feature in schema.item_features):
        raise UnknownName(f"item feature {name!r} cannot be filtered by; build the artifact with `filter: true` on it")
    raise unknown_name("filter feature", name, [feature.name for feature in schema.filter_features])


def require_kind(condition: Condition, feature: Feature, *kinds: str) -> None:
    """Raise `InvalidValue` unless the feature is of one of the kinds."""
    if feature.kind not in kinds:
        remedy = "any_of or all_of" if feature.kind == "tags" else "== or is_in"
        raise InvalidValue(
            f"filter {condition!r}: got {feature.name!r}, a feature of kind {feature.kind}, "
            f"expected one of kind {' or '.join(kinds)}; use {remedy}"
        )


def operand(feature: Feature, value: Any) -> Any:
    """A condition's value as it is compared: a category's key, a float64, seconds."""
    where = f"filter on {feature.name!r}"
    if feature.kind == "number":
        return number(where, value)
    if feature.kind == "date":
        return instant(where, value)
    return key_function(feature.values)(where, value)


def item_values(feature: Feature, value: Any) -> list[Any]:
    """An item's values of a feature, comparable with `operand`; an empty list when it has none."""
    if value is None:
        return []
    if feature.kind == "tags":
        return [operand(feature, tag) for tag in value]
    if isinstance(value, float) and value != value:
        return []
    if feature.kind == "date" and isinstance(value, int | float):
        return [float(value)]
    return [operand(feature, value)]
