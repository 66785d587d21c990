"""retrieval.yaml: everything that decides what is built, one frozen model per concern.

    name: movies                      # of the product; stands in the schema
    data:
      items: {path: items.parquet, id: item_id, features: [{name: genres, kind: tags, filter: true}]}
      users: {path: users.parquet, id: user_id, features: [{name: age, kind: number}]}
      interactions: {path: ratings.parquet, user: user_id, item: item_id, time: time}
    split: {kind: leave-last-out}
    network: {dims: 64, history: 50}
    training: {epochs: 30}
    index: {recall: 0.99}

or, with vectors that exist already, `embeddings: {path: vectors.npy}` in place of `data.interactions` (and of split and
training). Paths are relative to the folder of the file. An unknown key is an error, never ignored.
"""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from builder.condition import Condition, parse_condition
from builder.config_file import absolute, parse, read_yaml
from builder.errors import ConfigError
from builder.formula import linear_factors, parse_formula
from client.filters.compiler import MAX_WORDS
from client.schema import RESERVED_NAMES, Kind, Values

Name = Annotated[str, Field(min_length=1)]
File = Annotated[Path, AfterValidator(absolute)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Auto = Literal["auto"]
USER_ID = "user_id"
TORCHSCRIPT_NAMES = frozenset({"bool", "NoneType"})  # that its compiler does not take for an argument's
_RENAME = "rename the feature (column: keeps the file's name)"
DEFAULT_TASK = "score"  # where a configuration names none: every interaction is positive


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interactions(_Model):
    """Who took what when. Without a time there is no order."""

    path: File
    user: Name
    item: Name
    time: Name | None = None


class ItemFeature(_Model):
    """A column of the item table.

    `column`: where it differs from the name. `separator`: between the tags of a string (Parquet lists need none).
    `format`: strptime format of dates written as strings; ISO 8601 without it. `filter`: requests can filter on it.
    """

    name: Name
    kind: Kind
    filter: bool = False
    column: Name | None = None
    separator: Name | None = None
    format: Name | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _feature_name(name)

    @model_validator(mode="after")
    def _fits(self) -> ItemFeature:
        if self.separator is not None and self.kind != "tags":
            raise ValueError(f"separator goes with kind tags, not {self.kind}")
        if self.format is not None and self.kind != "date":
            raise ValueError(f"format goes with kind date, not {self.kind}")
        return self

    @property
    def source(self) -> str:
        """The column it is read from."""
        return self.column or self.name


class Items(_Model):
    """The catalogue: one row an item, `id` a column of distinct integers from 0 to 2^63 - 1."""

    path: File
    id: Name
    features: tuple[ItemFeature, ...] = ()

    @field_validator("features")
    @classmethod
    def _distinct(cls, features: tuple[ItemFeature, ...]) -> tuple[ItemFeature, ...]:
        _refuse_duplicates([feature.name for feature in features])
        return features


class UserFeature(_Model):
    """A column of the user table, and an input of the served network under its name.

    `values`: how a category is written; only for a user tower of your own, where no table tells.
    """

    name: Name
    kind: Literal["category", "number"]
    column: Name | None = None
    values: Values | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if name in TORCHSCRIPT_NAMES:
            raise ValueError(f"{name!r} is no argument that TorchScript takes; {_RENAME}")
        return _feature_name(name)

    @property
    def source(self) -> str:
        """The column it is read from."""
        return self.column or self.name


class Users(_Model):
    """User features. `path` and `id` may be left out only with a user tower of your own."""

    path: File | None = None
    id: Name | None = None
    features: tuple[UserFeature, ...] = ()

    @field_validator("features")
    @classmethod
    def _distinct(cls, features: tuple[UserFeature, ...]) -> tuple[UserFeature, ...]:
        _refuse_duplicates([feature.name for feature in features])
        return features


class Data(_Model):
    items: Items | None = None
    users: Users | None = None
    interactions: Interactions | None = None


class Embeddings(_Model):
    """Vectors trained elsewhere, in place of training.

    `path`: a .npy array [N, D] whose rows are those of the item table (without an item table the row number is the
    item's id), or Parquet with an `id` column (named as in `data.items` if not given) and a list `column`.
    `query`: a TorchScript user tower that takes the user features and `history` as named arguments; without it requests
    carry the query vector. `samples`: a .npy of query vectors [Q, D] on which recall is measured; items serve without.
    """

    path: File
    id: Name | None = None
    column: Name = "embedding"
    query: File | None = None
    samples: File | None = None


class Split(_Model):
    """Which interactions are kept from training.

    leave-last-out: each user's last for the test, the one before for validation (users of fewer than 3
    stay in training).
    file: `test` is a file with the columns of `data.interactions`; validation is `validation_share` of the training
    items of the validation users, drawn with the training seed (the last ones where there is a time).
    `validation_users`: at most so many users give something to validation. `validation_blocks`: where there is no time,
    what is held out of a user is one item drawn and those that others take together with it. Test parts that are the
    users' future are better foretold by such blocks than by single items (Roberts et al. 2017, doi:10.1111/ecog.02881).
    """

    kind: Literal["leave-last-out", "file"] = "leave-last-out"
    test: File | None = None
    validation_users: int = Field(default=10_000, ge=1)
    validation_share: Fraction = 0.2
    validation_blocks: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Split:
        if (self.kind == "file") != (self.test is not None):
            raise ValueError("kind file goes with a test file, and only that kind")
        if self.validation_blocks and self.kind != "file":
            raise ValueError("validation_blocks goes with kind file: leave-last-out holds out one item of each user")
        return self


class Network(_Model):
    """The two towers. `dims`: length of vectors. `history`: newest items read, 0 for none. `user_id`: an input.

    `task_groups`: the tasks that share a vector of the user, a list of their names for each vector; None: all do.
    `pooling`: how a history becomes a vector, the mean of its items or self-attention over their order, with so many
    `blocks` of so many `heads`; `dropout` in training.
    """

    dims: int = Field(default=64, ge=4, le=4096)
    history: int = Field(default=50, ge=0, le=4096)
    user_id: bool = True
    pooling: Literal["mean", "attention"] = "mean"
    blocks: int = Field(default=1, ge=1, le=8)
    heads: int = Field(default=2, ge=1, le=64)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    task_groups: tuple[tuple[Name, ...], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Network:
        if self.pooling == "attention":
            if not self.history:
                raise ValueError("pooling: attention reads histories: set history above 0, or leave pooling out")
            if self.dims % self.heads:
                raise ValueError(f"got {self.dims} dims and {self.heads} heads, expected heads that divide dims")
            return self
        for name in ("blocks", "heads", "dropout"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of attention: set pooling: attention, or leave it out")
        return self


class Training(_Model):
    """Sampled softmax with Adam. `epochs` is the most; training stops after `patience` epochs without better recall.

    `start`: random weights, or the truncated singular value decomposition of the interactions
    (builder/training/spectral.py), which `epochs` refine (0: none); items then have a vector in a history and another,
    of any length, as a result. `batch`: positives a step. `negatives`: items drawn uniformly a step, beside the batch's
    own. `temperature`: divides the products of user and item. `seed`: two runs of one seed on one machine are the same.
    On a GPU, and there only: `mixed_precision` (products of matrices in bfloat16) and `compile` (torch.compile) train
    the towers faster.
    """

    start: Literal["random", "spectral"] = "random"
    epochs: int = Field(default=50, ge=0)
    batch: int = Field(default=1024, ge=2, lt=2**31)
    negatives: int = Field(default=1024, ge=0, lt=2**31)
    learning_rate: float = Field(default=0.003, gt=0)
    temperature: float = Field(default=0.1, gt=0)
    patience: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    mixed_precision: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if not self.epochs and self.start == "random":
            raise ValueError("epochs: 0 leaves the towers as they start: set at least 1, or start: spectral")
        return self


class Rerank(_Model):
    """The reranker: a probability of each task for every candidate of the search (builder/network/rerank.py).

    `kind`: mlp, mol (mixture of logits), or graph, an mlp that reads no vectors. `hidden`: units of its first layer.
    `neighbours`: of each item, in the graph of items that users took together. `candidates`: how many of the search's
    candidates of each user it learns from.
    `epochs` is the most; it stops after `patience` epochs without better NDCG.
    """

    kind: Literal["mlp", "mol", "graph"] = "mlp"
    hidden: int = Field(default=64, ge=4, le=4096)
    neighbours: int = Field(default=100, ge=0, le=1024)
    candidates: int = Field(default=500, ge=10, le=65_536)
    epochs: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=0.001, gt=0)
    patience: int = Field(default=3, ge=1)


class IndexConfig(_Model):
    """The item index. `auto` values are measured when the artifact is exported, to reach `recall` against exact search.

    `code_dims`: dims of the int8 codes that find candidates, a projection of the vectors; auto: as few as keep nearly
    all exact results among the candidates. `results`: most results of a request (k). `candidates`: rows that leave the
    search for rescoring; `max_candidates`: the most a request may ask for. `max_filter_words`: of a filter's program
    (docs/filter-program.md); a row with a longer one gets a status instead of results.
    """

    clusters: Auto | Annotated[int, Field(ge=1)] = "auto"
    probes: Auto | Annotated[int, Field(ge=1)] = "auto"
    code_dims: Auto | Annotated[int, Field(ge=1)] = "auto"
    recall: Fraction = 0.99
    results: int = Field(default=100, ge=1, le=65_536)
    candidates: Auto | Annotated[int, Field(ge=1)] = "auto"
    max_candidates: int = Field(default=1024, ge=1, le=65_536)
    max_filter_words: int = Field(default=16_384, ge=2, le=MAX_WORDS)

    @model_validator(mode="after")
    def _fits(self) -> IndexConfig:
        if self.results > self.max_candidates:
            raise ValueError(f"results {self.results} exceed max_candidates {self.max_candidates}")
        if self.candidates != "auto" and not self.results <= self.candidates <= self.max_candidates:
            raise ValueError(
                f"candidates {self.candidates} must lie between results {self.results} "
                f"and max_candidates {self.max_candidates}"
            )
        if self.clusters != "auto" and self.probes != "auto" and self.probes > self.clusters:
            raise ValueError(f"probes {self.probes} exceed clusters {self.clusters}")
        return self


class Diversity(_Model):
    """Rules of the last selection. `at_most`: how many results may share a value of a category or of tags, by feature.

    `mmr`: maximal marginal relevance, 1 is relevance alone, smaller spreads results.
    """

    at_most: dict[Name, Annotated[int, Field(ge=1, le=65_536)]] = {}
    mmr: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Diversity:
        if not self.at_most and self.mmr is None:
            raise ValueError("holds no rule; set at_most or mmr, or leave the section out")
        return self


class Config(_Model):
    """The whole of retrieval.yaml, paths made absolute.

    `tasks`: what is predicted, by name, and the condition (builder/condition.py) under which an interaction is positive
    for it; interactions that are positive for none are left out. `value`: a formula (builder/formula.py) over the tasks
    and the numbers and dates of items, whose value orders results; without one they are ordered by the weighted sum of
    the tasks. `rerank`: without it the one task's score is the inner product of user and item vector. `diversity`:
    rules of the last selection.
    """

    name: Name
    data: Data = Data()
    tasks: Annotated[dict[str, bool | str], Field(min_length=1)] = {DEFAULT_TASK: True}
    embeddings: Embeddings | None = None
    split: Split = Split()
    network: Network = Network()
    training: Training = Training()
    rerank: Rerank | None = None
    index: IndexConfig = IndexConfig()
    value: str | None = None
    diversity: Diversity | None = None

    @field_validator("name")
    @classmethod
    def _model_name(cls, name: str) -> str:
        if not all(character.isalnum() or character in "_-." for character in name) or name.startswith("."):
            raise ValueError(f"got {name!r}, expected letters, digits, '_', '-' and '.': it names a folder")
        return name

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, tasks: dict[str, bool | str]) -> dict[str, bool | str]:
        for name, condition in tasks.items():
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
                raise ValueError(
                    f"got {name!r}, expected a Python identifier that is no keyword and has no leading '_'"
                )
            try:
                parse_condition(condition)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return tasks

    @model_validator(mode="after")
    def _fits(self) -> Config:
        users = self.data.users
        if (self.data.interactions is None) == (self.embeddings is None):
            raise ValueError("expected exactly one of data.interactions and embeddings")
        if self.network.task_groups is not None and self.embeddings is None:
            self._check_groups(self.network.task_groups)
        if len(self.tasks) > max(1, len(self.network.task_groups or ())) and self.rerank is None:
            raise ValueError(
                "rerank is missing: without it tasks that share a vector have one score; add it, or give each task a "
                "group of its own in network.task_groups"
            )
        if self.embeddings is None:
            if self.data.items is None:
                raise ValueError("data.items is missing: the table of the catalogue")
            interactions = self.data.interactions
            if self.network.pooling == "attention" and interactions is not None and interactions.time is None:
                raise ValueError("network.pooling: attention reads order: set data.interactions.time, or pooling: mean")
            if self.split.validation_blocks and interactions is not None and interactions.time is not None:
                raise ValueError("split.validation_blocks: with data.interactions.time the last items are held out")
            if self.training.start == "spectral" and (self.network.pooling != "mean" or not self.network.history):
                raise ValueError(
                    "training.start: spectral knows a user by the mean of a history: set network.history above 0 and "
                    "pooling: mean, or start: random"
                )
            if users is not None and (users.path is None or users.id is None):
                raise ValueError("data.users needs path and id")
            taken = {feature.name for feature in users.features} if users else set()
            if self.network.user_id and USER_ID in taken:
                raise ValueError(f"data.users.features: {USER_ID!r} is taken by network.user_id")
            if users is not None and any(feature.values is not None for feature in users.features):
                raise ValueError("data.users.features: values are read from the table; leave the key out")
            if not self.network.user_id and not self.network.history and not taken:
                raise ValueError("the user tower has no input: set network.user_id, network.history or a user feature")
        else:
            set_for_training = {"split", "tasks", "training", "rerank"} & self.model_fields_set
            if set_for_training:
                raise ValueError(f"embeddings are not trained: leave out {', '.join(sorted(set_for_training))}")
            for name in ("pooling", "task_groups"):
                if getattr(self.network, name) != Network.model_fields[name].default:
                    raise ValueError(f"network.{name} is of a tower that is trained here: leave it out")
            if self.embeddings.query is None and (users is not None or "network" in self.model_fields_set):
                raise ValueError("data.users and network describe a user tower; set embeddings.query or leave them out")
            if users is not None and users.path is not None:
                raise ValueError("data.users.path is read for training only; with embeddings give features alone")
            for feature in users.features if users else ():
                if (feature.kind == "category") != (feature.values is not None):
                    raise ValueError(
                        f"data.users.features: {feature.name!r}: with embeddings a category needs "
                        "values: integer or string, and a number none"
                    )
        if self.value is not None:
            self._check_value(self.value)
        for name in self.diversity.at_most if self.diversity else ():
            self._check_shared(name)
        return self

    def _check_groups(self, groups: tuple[tuple[str, ...], ...]) -> None:
        expected = f"expected each of the tasks once: {', '.join(self.tasks)}"
        named = [task for group in groups for task in group]
        for task in [*named, *self.tasks]:
            if task not in self.tasks:
                raise ValueError(f"network.task_groups: unknown task {task!r}; {expected}")
            if named.count(task) != 1:
                count = "in no group" if task not in named else f"named {named.count(task)} times"
                raise ValueError(f"network.task_groups: {task!r} is {count}; {expected}")
        if len(groups) < 2 or not all(groups):
            raise ValueError(
                f"network.task_groups: got {[list(group) for group in groups]}, expected at least two groups, none of "
                "them empty; without it all tasks share a vector"
            )

    def _check_value(self, formula: str) -> None:
        numbers = self._numbers
        if twice := numbers.intersection(self.tasks):
            raise ValueError(f"value: {min(twice)!r} is a task and an item feature; rename the feature")
        try:
            parse_formula(formula, {*self.tasks, *numbers})
        except ValueError as error:
            raise ValueError(f"value: {error}") from error

    def _check_shared(self, name: str) -> None:
        features = self.data.items.features if self.data.items else ()
        kinds = {feature.name: feature.kind for feature in features}
        shared = sorted(known for known, kind in kinds.items() if kind in ("category", "tags"))
        expected = f"expected a category or tags: {', '.join(shared) or 'data.items has none'}"
        if name not in kinds:
            raise ValueError(f"diversity.at_most: unknown feature {name!r}; {expected}")
        if name not in shared:
            raise ValueError(f"diversity.at_most: {name!r} is a {kinds[name]}; {expected}")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read and check a file. Raises ConfigError naming file, field, got and expected."""
        return parse(read_yaml(path), cls, source=path)

    def to_yaml(self) -> str:
        """The settings as resolved, in the form `load` reads."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """When an interaction is positive, a task each, in order."""
        return tuple(parse_condition(condition) for condition in self.tasks.values())

    @property
    def groups(self) -> tuple[tuple[int, ...], ...] | None:
        """`network.task_groups` as numbers of tasks."""
        groups, tasks = self.network.task_groups, list(self.tasks)
        return None if groups is None else tuple(tuple(tasks.index(task) for task in group) for group in groups)

    @property
    def task_factors(self) -> tuple[float, ...]:
        """What each task counts in `value` times its weight; 1 each without one, and where it is not linear in them."""
        found = None
        if self.value is not None:
            found = linear_factors(parse_formula(self.value, {*self.tasks, *self._numbers}), tuple(self.tasks))
        return tuple(1.0 for _ in self.tasks) if found is None else found

    @property
    def _numbers(self) -> set[str]:
        features = self.data.items.features if self.data.items else ()
        return {feature.name for feature in features if feature.kind in ("number", "date")}

    @property
    def items(self) -> Items:
        """`data.items`. Raises ConfigError where the configuration has none."""
        if self.data.items is None:
            raise ConfigError("data.items is missing: the table of the catalogue")
        return self.data.items


def _feature_name(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is the name of another input; {_RENAME}")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(
            f"got {name!r}, expected a Python identifier that is no keyword and has no leading '_' "
            "(column: keeps the file's name)"
        )
    return name


def _refuse_duplicates(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"feature named twice: {', '.join(twice)}")
