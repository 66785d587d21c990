"""`F` writes conditions, `compile_filter` turns them into the words that travel, `matches` defines what they mean."""

from client.filters.builder import F
from client.filters.compiler import compile_filter
from client.filters.conditions import AllOf, And, AnyOf, Condition, ItemIn, Not, Or, Range, Unknown, everything, item_in
from client.filters.cost import FilterCost, filter_cost
from client.filters.interpreter import matches
from client.filters.text import parse_filter

__all__ = [
    "AllOf",
    "And",
    "AnyOf",
    "Condition",
    "F",
    "FilterCost",
    "ItemIn",
    "Not",
    "Or",
    "Range",
    "Unknown",
    "compile_filter",
    "everything",
    "filter_cost",
    "item_in",
    "matches",
    "parse_filter",
]
