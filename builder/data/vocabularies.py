"""The strings behind the keys of item features: for people to read, never needed to serve."""

from __future__ import annotations

import pyarrow.compute as pc

from builder.config import Items
from builder.data.catalogue import Catalogue
from builder.data.tables import read_table
from builder.data.values import column, tag_values

MOST_VALUES = 50_000  # of one feature; the manifest stays readable, and a list of titles is no vocabulary


def string_values(items: Items, catalogue: Catalogue) -> dict[str, list[str]]:
    """The distinct strings of each category and tags feature that has strings, sorted; those of more are left out."""
    is_string = {feature.name: feature.values == "string" for feature in catalogue.features}
    found: dict[str, list[str]] = {}
    for feature in items.features:
        if not is_string[feature.name]:
            continue
        array = column(read_table(items.path, [feature.source], text=[feature.source]), feature.source)
        if feature.kind == "tags":
            _, array = tag_values(array, feature.separator, f"{items.path}, column {feature.source!r}")
        distinct = pc.unique(array).drop_null()
        if len(distinct) <= MOST_VALUES:
            found[feature.name] = sorted(value for value in distinct.to_pylist() if value)
    return found
