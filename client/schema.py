"""What a served artifact expects and returns: the schema that stands in Triton's model configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Literal, get_args

from client.errors import SchemaError

SCHEMA_VERSION = 1
PROGRAM_VERSION = 1
RESERVED_NAMES = frozenset({"history", "query", "filter", "exclude", "task_weights", "search", "items", "self"})

RANKING_SUFFIX = "_rank"
"""The ranking model of a retrieval model `name` is served as `name` + this."""

CANARY_SUFFIX = "_canary"
"""A canary, a second version of a model `name` for a share of the requests, is served as `name` + this."""
SHARE_PARAMETER = "share"  # of the requests that go to a canary, 0 to 1

Kind = Literal["category", "tags", "number", "date"]
Values = Literal["integer", "string"]


class Status(IntEnum):
    """Why a row has no answer; see docs/wire-contract.md."""

    OK = 0
    USER_FEATURE = 1
    HISTORY = 2
    QUERY = 3
    FILTER_MALFORMED = 4
    FILTER_FINGERPRINT = 5
    EXCLUDE = 6
    TASK_WEIGHTS = 7
    SEARCH = 8
    ITEMS = 9
    FILTER_TOO_LONG = 10
    INDEX = 11


@dataclass(frozen=True)
class Feature:
    """One feature of users or items.

    `kind`: category (one value), tags (any number of values), number (float64), date (seconds since 1970 UTC).
    `values`: how category and tag values are written; None for numbers and dates.
    `filter`: whether item filters can test it.
    """

    name: str
    kind: Kind
    values: Values | None = None
    filter: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SchemaError(f"a feature is named {self.name!r}; expected a string")
        if self.kind not in get_args(Kind):
            raise SchemaError(f"feature {self.name!r}: unknown kind {self.kind!r}; expected one of {get_args(Kind)}")
        wants_values = self.kind in ("category", "tags")
        if wants_values != (self.values in get_args(Values)):
            raise SchemaError(f"feature {self.name!r}: kind {self.kind!r} does not go with values {self.values!r}")


@dataclass(frozen=True)
class Schema:
    """Everything a client must know; it holds names, types and limits but no vocabulary."""

    name: str
    user_features: tuple[Feature, ...]
    item_features: tuple[Feature, ...]
    tasks: tuple[str, ...]
    history_length: int  # 0: the artifact takes no history
    query_dims: int  # 0: the artifact has a user tower; else the request carries a query vector of this length
    max_results: int
    max_candidates: int
    clusters: int
    version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        least = {"history_length": 0, "query_dims": 0, "max_results": 1, "max_candidates": 1, "clusters": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value < 2**31:
                raise SchemaError(f"{name} is {value!r}; expected an integer of at least {low}")
        if not self.tasks or not all(isinstance(task, str) for task in self.tasks):
            raise SchemaError(f"tasks are {self.tasks!r}; expected one name or more")
        user = [feature.name for feature in self.user_features]
        item = [feature.name for feature in self.item_features]
        for what, names in (("user feature", user), ("item feature", item), ("task", list(self.tasks))):
            if twice := [name for name in names if names.count(name) > 1]:
                raise SchemaError(f"{what} {twice[0]!r} occurs twice")
        if reserved := RESERVED_NAMES.intersection(user):
            raise SchemaError(f"user feature {min(reserved)!r} has the name of another input")
        if self.query_dims and (user or self.history_length):
            raise SchemaError("an artifact that takes a query vector takes no user features and no history")
        for feature in self.user_features:
            if feature.kind not in ("category", "number"):
                raise SchemaError(
                    f"user feature {feature.name!r} is of kind {feature.kind}; expected category or number"
                )

    @property
    def filter_features(self) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.item_features if feature.filter)

    @property
    def fingerprint(self) -> int:
        """Signed 64 bits that name the meaning of filter programs: program version and filter features in order."""
        meaning = [PROGRAM_VERSION, [[f.name, f.kind, f.values] for f in self.filter_features]]
        text = json.dumps(meaning, separators=(",", ":"), ensure_ascii=True)
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read a schema written by `to_json`; raises `SchemaError` saying what is wrong with it.

        Fields that are not known are those of newer builders, and ignored: one that matters raises the version.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SchemaError(f"the schema is not JSON: {error}") from error
        if not isinstance(raw, dict) or "version" not in raw:
            raise SchemaError("the schema is not a JSON object with a version")
        if raw["version"] != SCHEMA_VERSION:
            raise SchemaError(
                f"the schema has version {raw['version']}, this client reads {SCHEMA_VERSION}; "
                "use a client of the artifact's release: pip install --upgrade silvertriton"
            )
        try:
            raw["user_features"] = tuple(_feature(f) for f in raw["user_features"])
            raw["item_features"] = tuple(_feature(f) for f in raw["item_features"])
            raw["tasks"] = tuple(raw["tasks"])
            return cls(**_known(cls, raw))
        except (AttributeError, KeyError, TypeError) as error:
            raise SchemaError(f"the schema lacks or misnames a field: {error}") from error


def _feature(raw: Mapping[str, Any]) -> Feature:
    return Feature(**_known(Feature, raw))


def _known(kind: type[Schema | Feature], raw: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}
