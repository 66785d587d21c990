"""Requests to tensors and tensors to results: docs/wire-contract.md without any IO."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client._device import DeviceArray, DeviceRows, is_on_device, vector_on_device
from client._models import Request, Retrieval, Stats
from client._values import FLOAT32_MAX, id_bytes, key_function, number, words
from client.contract import Contract
from client.errors import (
    InvalidValue,
    LimitExceeded,
    RequestError,
    RowStatusError,
    SchemaMismatch,
    invalid_value,
    unknown_name,
)
from client.filters.compiler import FilterCompiler
from client.hashing import UNKNOWN_KEY
from client.schema import Schema, Status

Tensors = dict[str, NDArray[Any]]
Shapes = tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
"""Outputs by name: shape beside the batch dimension, and dtype."""

_NAN = float("nan")
LEAST_IDS = 8  # padded lengths start here: lone shapes are not batched together
_LEAST_WORDS = 16
_NO_FILTER = bytes(16)
_NO_USER: dict[str, Any] = {}
_MINUS_ONE, _ZERO = b"\xff" * 8, bytes(8)
_FLOATS = (float, np.floating)
_SEARCH = struct.Struct("<2i")
_NO_PREFERENCE = _SEARCH.pack(0, 0)

_MEANINGS = {
    Status.USER_FEATURE: "a number feature of the user is infinite",
    Status.HISTORY: "the history holds an id below -1",
    Status.QUERY: "the query vector holds NaN or infinity",
    Status.FILTER_MALFORMED: "it does not know this filter program; please report this with the filter",
    Status.FILTER_FINGERPRINT: "the filter was compiled for another schema, the artifact was replaced; call again",
    Status.EXCLUDE: "the excluded ids hold an id below -1",
    Status.TASK_WEIGHTS: "a task weight is infinite",
    Status.SEARCH: "probes or candidates are out of range",
    Status.ITEMS: "the given items hold an id below -1",
    Status.FILTER_TOO_LONG: "the filter has more words than the artifact takes (max_filter_words); use fewer values",
    Status.INDEX: "the index on the server's GPU contradicts itself; export the artifact again",
}


class Row(NamedTuple):
    """One checked request, ready to be stacked with others: what travels as its bytes, which join faster than arrays.

    `categories`: keys, and `numbers`: float32, in the order of the schema's; `history`, `program`, `exclude`: int64;
    `query`, `task_weights`: float32; `search`: int32.
    """

    categories: bytes
    numbers: bytes
    history: bytes | DeviceArray
    query: bytes | DeviceArray
    program: bytes
    exclude: bytes
    task_weights: bytes
    search: bytes
    k: int


class Codec:
    """Encodes and decodes for one schema; what depends only on the schema is computed once. Threads may share it.

    `contract`: what the artifact understands beside its schema; left out, all that this release knows. `device`: number
    of the CUDA device that `query` and `history` may be on, as their transport shares its memory with the server.
    """

    def __init__(
        self,
        schema: Schema,
        contract: Contract = Contract(),  # noqa: B008 - immutable
        device: int | None = None,
    ) -> None:
        self._device = device
        self.schema = schema
        self.contract = contract
        self._filters = FilterCompiler(schema, contract.opcodes, contract.max_filter_words)
        self._features = frozenset(feature.name for feature in schema.user_features)
        self._tower = not schema.query_dims
        categories = [feature for feature in schema.user_features if feature.kind == "category"]
        self._categories = [(f.name, key_function(f.values), f"user feature {f.name!r}") for f in categories]
        self._numbers = [(f.name, f"user feature {f.name!r}") for f in schema.user_features if f.kind == "number"]
        self._tasks = {name: position for position, name in enumerate(schema.tasks)}
        self._pack_weights = struct.Struct(f"<{len(schema.tasks)}f").pack
        self._pack_numbers = struct.Struct(f"<{len(self._numbers)}f").pack
        self._default_weights = self._pack_weights(*[_NAN] * len(schema.tasks))
        results, tasks = schema.max_results, len(schema.tasks)
        self._outputs: Shapes = (
            ("item_ids", (results,), np.dtype(np.int64)),
            ("scores", (results,), np.dtype(np.float32)),
            ("task_scores", (results, tasks), np.dtype(np.float32)),
            ("count", (1,), np.dtype(np.int32)),
            ("status", (1,), np.dtype(np.int32)),
            ("stats", (4,), np.dtype(np.int32)),
        )

    def check(self, request: Request) -> Row:
        """Check one request and bring its values into the form that travels. Raises `RequestError`."""
        schema = self.schema
        history: bytes | DeviceArray = b""
        query: bytes | DeviceArray = b""
        if self._tower:
            categories, numbers = self._user(_NO_USER if request.user is None else request.user)
            if request.query is not None:
                raise InvalidValue("query: this artifact computes it from user and history; leave it out")
            if request.history is not None:
                history = self._history(request.history)
                if not schema.history_length and len(history):
                    raise InvalidValue("history: this artifact takes none; leave it out")
        else:
            categories = numbers = b""
            no_user = request.user is None or (isinstance(request.user, Mapping) and not request.user)
            if not no_user or request.history is not None:
                raise InvalidValue(
                    "user, history: this artifact has no user tower and takes only query; leave them out"
                )
            query = self._query(request.query)
        condition = request.filter
        weights = request.task_weights
        probes, candidates = request.probes, request.candidates
        return Row(
            categories,
            numbers,
            history,
            query,
            _NO_FILTER if condition is None else self._filters.compile_bytes(condition),
            b"" if request.exclude is None else id_bytes("exclude", request.exclude),
            self._default_weights if weights is None else self._weights(weights),
            _NO_PREFERENCE
            if probes is None and candidates is None
            else _SEARCH.pack(
                _limited("probes", probes, schema.clusters, "the artifact's clusters", 0),
                _limited("candidates", candidates, schema.max_candidates, "the artifact's max_candidates", 0),
            ),
            _limited("k", request.k, schema.max_results, "the artifact's max_results", schema.max_results),
        )

    def stack(self, rows: Sequence[Row]) -> Tensors:
        """Rows to the tensors of a batch, [B, ...], padded alike; at least one row."""
        categories, numbers, histories, queries, programs, excludes, weights, searches, _ = zip(*rows, strict=True)
        tensors: Tensors = {}
        if self._categories:
            keys = np.frombuffer(b"".join(categories), np.int64).reshape(len(rows), -1)
            for position, (name, _, _) in enumerate(self._categories):
                tensors[name] = keys[:, position : position + 1]
        if self._numbers:
            values = np.frombuffer(b"".join(numbers), np.float32).reshape(len(rows), -1)
            for position, (name, _) in enumerate(self._numbers):
                tensors[name] = values[:, position : position + 1]
        if self.schema.query_dims:
            if self._device is not None and _any_on_device(queries):
                tensors["query"] = _device_rows(queries, self.schema.query_dims, np.float32)
            else:
                tensors["query"] = np.frombuffer(b"".join(queries), np.float32).reshape(len(rows), -1)
        elif self.schema.history_length:
            if self._device is not None and _any_on_device(histories):
                longest = max(len(row) if isinstance(row, DeviceArray) else len(row) // 8 for row in histories)
                width = max(LEAST_IDS, 1 << (longest - 1).bit_length())
                tensors["history"] = _device_rows(histories, width, np.int64)
            else:
                tensors["history"] = padded(histories, LEAST_IDS, -1)
        tensors["filter"] = padded(programs, _LEAST_WORDS, 0)
        tensors["exclude"] = padded(excludes, LEAST_IDS, -1)
        tensors["task_weights"] = np.frombuffer(b"".join(weights), np.float32).reshape(len(rows), -1)
        tensors["search"] = np.frombuffer(b"".join(searches), np.int32).reshape(len(rows), 2)
        return tensors

    def encode(self, requests: Iterable[Request]) -> Tensors:
        """Requests to the tensors of one batch, which are read-only. Raises the `RequestError` of the first bad one."""
        return self.stack([self.check(request) for request in requests])

    def decode(
        self,
        outputs: Mapping[str, NDArray[Any]],
        wanted: Sequence[int],
        latency: float = 0.0,
        version: int | None = None,
    ) -> list[Retrieval | RequestError]:
        """The answer of a batch to its results; `wanted`: the k of each row. Latency in seconds.

        A row with a status gives a `RowStatusError` (not raised). Raises `SchemaMismatch` for outputs that do not
        follow the contract.
        """
        batch, tasks, most = len(wanted), self.schema.tasks, self.schema.max_results
        ids, scores, task_scores, counts, statuses, stats = checked(outputs, batch, self._outputs)
        results: list[Retrieval | RequestError] = []
        rows = zip(
            ids,
            scores,
            task_scores,
            counts[:, 0].tolist(),
            statuses[:, 0].tolist(),
            *stats.T.tolist(),
            wanted,
            strict=True,
        )
        for row_ids, row_scores, row_tasks, count, status, probed, passing, scanned, exact, k in rows:
            if status:
                results.append(row_error(status))
                continue
            if not 0 <= count <= most:
                raise SchemaMismatch(f"output 'count': got {count}, expected 0 to {most}")
            n = count if count < k else k
            if n < most:
                row_ids, row_scores, row_tasks = row_ids[:n], row_scores[:n], row_tasks[:n]
            search = Stats(probed, passing, scanned, exact != 0)
            results.append(Retrieval(row_ids, row_scores, row_tasks, tasks, search, latency, version))
        return results

    def _query(self, query: Any) -> bytes | DeviceArray:
        dims = self.schema.query_dims
        if not is_on_device(query):
            return _query(query, dims).tobytes()
        vector = vector_on_device("query", query, np.float32, self._device)
        if len(vector) != dims:
            raise InvalidValue(f"query: got {len(vector)} numbers on {vector.device}, expected {dims}")
        return vector

    def _history(self, history: Any) -> bytes | DeviceArray:
        newest = self.schema.history_length
        if not is_on_device(history):
            return id_bytes("history", history, newest=newest or None)
        return vector_on_device("history", history, np.int64, self._device)[-newest:]

    def _user(self, user: Mapping[str, Any]) -> tuple[bytes, bytes]:
        if type(user) is not dict and not isinstance(user, Mapping):
            raise invalid_value("user", user, "a mapping of feature names to values")
        if not user.keys() <= self._features:
            unknown = user.keys() - self._features
            raise unknown_name("user feature", min(unknown, key=str), sorted(self._features))
        categories = []
        for name, key, where in self._categories:
            value = user.get(name)
            categories.append(UNKNOWN_KEY if value is None else key(where, value))
        numbers = []
        for name, where in self._numbers:
            value = user.get(name)
            if value is None or (isinstance(value, _FLOATS) and value != value):
                numbers.append(_NAN)
                continue
            value = number(where, value)
            if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
                raise invalid_value(where, value, "a finite number within float32, or None for unknown")
            numbers.append(value)
        return words(len(categories)).pack(*categories), self._pack_numbers(*numbers)

    def _weights(self, weights: Mapping[str, float]) -> bytes:
        values = [_NAN] * len(self._tasks)
        if not isinstance(weights, Mapping):
            raise invalid_value("task_weights", weights, "a mapping of task names to weights")
        for name, weight in weights.items():
            position = self._tasks.get(name)
            if position is None:
                raise unknown_name("task", name, self._tasks)
            value = number(f"task_weights[{name!r}]", weight)
            if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
                raise invalid_value(f"task_weights[{name!r}]", weight, "a finite weight within float32")
            values[position] = value
        return self._pack_weights(*values)


def checked(outputs: Mapping[str, NDArray[Any]], batch: int, expected: Shapes) -> list[NDArray[Any]]:
    """The outputs in order. Raises `SchemaMismatch` unless they are there with these shapes and dtypes."""
    tensors = []
    for name, shape, dtype in expected:
        tensor = outputs.get(name)
        if tensor is None:
            raise SchemaMismatch(
                f"the model returned no output {name!r} of {dtype}; it is no SilverTriton artifact, or one of another "
                "version of the wire contract"
            )
        if tensor.shape != (batch, *shape) or tensor.dtype != dtype:
            raise SchemaMismatch(
                f"output {name!r}: got {tensor.dtype} {list(tensor.shape)}, expected {dtype} {[batch, *shape]}; "
                "the artifact was replaced, or is none of SilverTriton"
            )
        tensors.append(tensor)
    return tensors


def padded(rows: Sequence[bytes], least: int, fill: int) -> NDArray[np.int64]:
    """Rows of int64 words, then `fill` (-1 or 0), to [B, n] int64.

    n is the power of two that holds the longest row, not below `least`.
    """
    width = max(8 * least, 1 << (max(map(len, rows)) - 1).bit_length())  # bytes
    padding = (_MINUS_ONE if fill == -1 else _ZERO) * (width // 8)
    table = b"".join([row + padding[len(row) :] for row in rows])
    return np.frombuffer(table, np.int64).reshape(len(rows), -1)


def _any_on_device(rows: Sequence[bytes | DeviceArray]) -> bool:
    return any(isinstance(row, DeviceArray) for row in rows)


def _device_rows(rows: Sequence[bytes | DeviceArray], width: int, dtype: type) -> Any:
    """Rows of at most `width` numbers, on a device or not, padded with -1 to `DeviceRows` [B, width]."""
    pieces: list[DeviceArray | NDArray[Any]] = []
    for row in rows:  # a bytearray: only what may be written to is given through DLPack
        values: Any = row if isinstance(row, DeviceArray) else np.frombuffer(bytearray(row), dtype)
        pieces += (values, np.full(width - len(values), -1, dtype))
    return DeviceRows((len(rows), width), np.dtype(dtype), pieces)


def _limited(name: str, value: int | None, most: int, limit: str, default: int) -> int:
    if value is None:
        return default
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
        raise invalid_value(name, value, "an integer")
    if not 1 <= value <= most:
        raise LimitExceeded(f"{name}: got {value}, expected 1 to {most} ({limit})")
    return int(value)


def _query(query: ArrayLike | None, dims: int) -> NDArray[np.float32]:
    if query is None:
        raise InvalidValue(f"query: missing; this artifact has no user tower and needs a vector of {dims} numbers")
    try:
        vector = np.asarray(query)
    except ValueError:
        raise invalid_value("query", query, f"a vector of {dims} numbers") from None
    if vector.dtype.kind not in "iuf" or vector.shape != (dims,):
        got = f"{vector.dtype} of shape {list(vector.shape)}"
        raise InvalidValue(f"query: got {got}, expected numbers of shape [{dims}]")
    with np.errstate(over="ignore"):  # too large for float32 is reported as infinite below
        vector = vector.astype(np.float32)
    if not np.isfinite(vector).all():
        at = int(np.argmin(np.isfinite(vector)))
        raise InvalidValue(f"query[{at}]: got {vector[at]}, expected finite float32 numbers")
    return vector


def row_error(status: int) -> RowStatusError:
    try:
        known = Status(status)
    except ValueError:
        return RowStatusError(
            f"the server refused the request with status {status}, which this client does not know: the artifact is "
            "newer; update the client to read why: pip install --upgrade silvertriton",
            status,
        )
    return RowStatusError(f"the server refused the request: {known.name.lower()}: {_MEANINGS[known]}", known)
