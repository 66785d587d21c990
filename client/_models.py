"""What goes into a retrieval or a ranking and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client import _convert
from client.filters.conditions import Condition


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One user's request. Everything is optional as far as the artifact allows it; None is the artifact's default.

    `user`: feature name -> value. Category: string or integer, as the artifact stores it (a bool is 1 or 0). Number:
        finite. Left out, None or (number) NaN: unknown to the network.
    `history`: item ids, newest last. Of more than the artifact's `history_length` only the newest are read. Ids that
        are not in the catalogue count as absent.
    `query`: [query_dims] the query vector, required by an artifact without a user tower and refused by one with. As an
        array on the CUDA device of a client's `shared_memory`: float32; the server checks that it is finite.
    `filter`: what may be returned, written with `client.F`.
    `exclude`: item ids never to return. Ids that are not in the catalogue are ignored.
    `k`: results wanted, 1 to `max_results` (the default).
    `task_weights`: task name -> finite weight in the final score; tasks left out keep the artifact's.
    `probes`: how many clusters to search, 1 to `clusters`; more where those hold fewer items than are wanted.
    `candidates`: rows to rescore and rank, 1 to `max_candidates`; fewer than `k` candidates are as many results.
    `key`: a string or an integer, such as the user's id: while a canary is served, requests of one key all go to the
        same version. None: each goes where chance has it.

    `history` and `exclude` take any iterable of non-negative ints; a generator is used up by the first call. `history`
    may be an int64 array on the CUDA device of a client's `shared_memory`; the server checks its ids, -1 is none.
    """

    user: Mapping[str, Any] | None = None
    history: Iterable[int] | None = None
    query: ArrayLike | None = None
    filter: Condition | None = None
    exclude: Iterable[int] | None = None
    k: int | None = None
    task_weights: Mapping[str, float] | None = None
    probes: int | None = None
    candidates: int | None = None
    key: str | int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: item id, final score, and the score of each task by name."""

    item_id: int
    score: float
    tasks: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stats:
    """What the search did for one request.

    `clusters_probed`, `rows_passing` the filter, `rows_scanned`; `exact`: no passing row was left unscanned.
    """

    clusters_probed: int
    rows_passing: int
    rows_scanned: int
    exact: bool


class Results:
    """What all results have: hits in order, and other forms of them."""

    __slots__ = ()
    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    task_scores: NDArray[np.float32]
    task_names: tuple[str, ...]
    latency: float

    @property
    def hits(self) -> list[Hit]:
        """The results as objects."""
        return _hits(self)

    def to_numpy(self) -> NDArray[Any]:
        """[count] structured array of the columns item_id (int64), score and task_NAME for each task (float32)."""
        return _convert.to_numpy(self)

    def to_arrow(self) -> Any:
        """The same columns as a pyarrow.Table. Raises `ModuleNotFoundError` without pyarrow."""
        return _convert.to_arrow(self)

    def to_pandas(self) -> Any:
        """The same columns as a pandas.DataFrame. Raises `ModuleNotFoundError` without pandas."""
        return _convert.to_pandas(self)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, position: int) -> Hit: ...

    @overload
    def __getitem__(self, position: slice) -> list[Hit]: ...

    def __getitem__(self, position: int | slice) -> Hit | list[Hit]:
        return self.hits[position] if isinstance(position, slice) else _hit(self, position)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Retrieval(Results):
    """The results of one request, best first, or in the order that the artifact's diversity rules chose.

    Fewer than asked for, or none, when few items pass the filter or fit the rules.

    `item_ids` [count] int64, `scores` [count] float32, `task_scores` [count, T] float32 in the order of `task_names`;
    the arrays may be read-only. From a client with `shared_memory="cuda:N"` they are `client.DeviceArray`s on that
    device, for torch.from_dlpack or the like; what is made of them here is copied to the host.
    `latency`: seconds from sending the tensors to having the answer, shared by a batch.
    `version`: of the model that answered; None from a transport that cannot tell.

    Iterating, indexing and `hits` give `Hit` objects, made on demand, a slice a list of them; `len()` is `count`.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    task_scores: NDArray[np.float32]
    task_names: tuple[str, ...]
    stats: Stats
    latency: float = field(default=0.0)
    version: int | None = None

    @property
    def count(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"<Retrieval of {_shown(self)}, "
            f"{stats.clusters_probed} clusters, {stats.rows_scanned:,} of {stats.rows_passing:,} passing rows scanned>"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ranking(Results):
    """Given items with their scores, best first: by score, then smaller id. An item given twice is there twice.

    `item_ids` [count] int64, `scores` [count] float32, `task_scores` [count, T] float32 in the order of `task_names`;
    `positions` [count] int64: where each stands among the given items. `unknown` [n] int64: the given ids that the
    artifact does not have, in their order. `latency`: seconds from sending the tensors to having the answer.
    `version`: of the model that answered; None from a transport that cannot tell.

    Iterating, indexing and `hits` give `Hit` objects, made on demand, a slice a list of them; `len()` is `count`.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    task_scores: NDArray[np.float32]
    task_names: tuple[str, ...]
    positions: NDArray[np.int64]
    unknown: NDArray[np.int64]
    latency: float = field(default=0.0)
    version: int | None = None

    @property
    def count(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"<Ranking of {_shown(self)}, {len(self.unknown)} unknown>"


def _hits(of: Results) -> list[Hit]:
    rows = zip(of.item_ids.tolist(), of.scores.tolist(), of.task_scores.tolist(), strict=True)
    return [Hit(item, score, dict(zip(of.task_names, tasks, strict=True))) for item, score, tasks in rows]


def _hit(of: Results, position: int) -> Hit:
    tasks = dict(zip(of.task_names, of.task_scores[position].tolist(), strict=True))
    return Hit(of.item_ids[position].tolist(), of.scores[position].tolist(), tasks)


def _shown(of: Results) -> str:
    pairs = zip(of.item_ids[:3].tolist(), of.scores[:3].tolist(), strict=True)
    first = ", ".join(f"{item}: {score:.4g}" for item, score in pairs)
    return f"{len(of)} [{first}{', ...' if len(of) > 3 else ''}] in {of.latency * 1e3:.2f} ms"
