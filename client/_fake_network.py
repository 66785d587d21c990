"""The forward passes of `client.testing.FakeServer` in NumPy: docs/wire-contract.md over given items. No IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client._values import item_ids
from client.contract import Contract
from client.errors import InvalidValue, SchemaMismatch
from client.filters.programs import MalformedProgram, OtherFingerprint, ProgramRunner
from client.schema import Schema, Status

Tensors = dict[str, NDArray[Any]]


class FakeNetwork:
    """One artifact; see `FakeServer` for the arguments."""

    def __init__(
        self,
        schema: Schema,
        items: Sequence[Mapping[str, Any]],
        scores: ArrayLike | None,
        vectors: ArrayLike | None,
        contract: Contract,
    ) -> None:
        self.schema = schema
        names = {"item_id", *(feature.name for feature in schema.item_features)}
        for position, item in enumerate(items):
            if "item_id" not in item or not item.keys() <= names:
                raise InvalidValue(f"items[{position}]: got {sorted(map(str, item))}, expected item_id and {names}")
        self._ids = item_ids("items", [item["item_id"] for item in items])
        if len(set(self._ids.tolist())) < len(items):
            raise InvalidValue("items: an item_id occurs twice")
        self._programs = ProgramRunner(schema, items, contract.opcodes)
        self._max_filter_words = contract.max_filter_words
        count, tasks = len(items), len(schema.tasks)
        self._vectors: NDArray[np.float32] | None = None
        if vectors is not None:
            self._vectors = np.asarray(vectors, np.float32)
            if scores is not None or self._vectors.shape != (count, schema.query_dims) or not schema.query_dims:
                raise InvalidValue(
                    f"vectors: got shape {self._vectors.shape}, expected {(count, schema.query_dims)}, a schema that "
                    "takes a query vector, and no scores"
                )
        given = np.arange(count, 0, -1) / max(count, 1) if scores is None else np.asarray(scores)
        self._scores = (given[:, None] if given.ndim == 1 else given).astype(np.float32)  # [N, T]
        if self._scores.shape[1:] == (1,):
            self._scores = np.repeat(self._scores, tasks, axis=1)
        if self._scores.shape != (count, tasks):
            raise InvalidValue(f"scores: got shape {given.shape}, expected {(count,)} or {(count, tasks)}")
        self._user: dict[str, tuple[Any, int | None]] = {"query": (np.float32, schema.query_dims)}
        if not schema.query_dims:
            self._user = {
                feature.name: (np.int64 if feature.kind == "category" else np.float32, 1)
                for feature in schema.user_features
            }
            if schema.history_length:
                self._user["history"] = (np.int64, None)
        self._user["task_weights"] = (np.float32, tasks)

    def retrieve(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Outputs of the retrieval model. Raises `SchemaMismatch` for tensors that it does not take."""
        batch = self._check(inputs, {"filter": (np.int64, None), "exclude": (np.int64, None), "search": (np.int32, 2)})
        results, tasks = self.schema.max_results, len(self.schema.tasks)
        outputs: Tensors = {
            "item_ids": np.full((batch, results), -1, np.int64),
            "scores": np.full((batch, results), -np.inf, np.float32),
            "task_scores": np.full((batch, results, tasks), -np.inf, np.float32),
            "count": np.zeros((batch, 1), np.int32),
            "status": np.zeros((batch, 1), np.int32),
            "stats": np.zeros((batch, 4), np.int32),
        }
        for row in range(batch):
            request = {name: tensor[row] for name, tensor in inputs.items()}
            status, passing = self._passing(request)
            outputs["status"][row] = status
            if status:
                continue
            task_scores, scores = self._scored(request)
            allowed = passing & ~np.isin(self._ids, request["exclude"])
            _, candidates = request["search"].tolist()
            order = np.lexsort((self._ids, -scores))
            order = order[allowed[order]][: min(results, candidates or self.schema.max_candidates)]
            count = len(order)
            outputs["item_ids"][row, :count] = self._ids[order]
            outputs["scores"][row, :count] = scores[order]
            outputs["task_scores"][row, :count] = task_scores[order]
            outputs["count"][row] = count
            outputs["stats"][row] = self.schema.clusters, passing.sum(), passing.sum(), 1
        return outputs

    def rank(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Outputs of the ranking model. Raises `SchemaMismatch` for tensors that it does not take."""
        self._check(inputs, {"items": (np.int64, None)})
        items, tasks = inputs["items"], len(self.schema.tasks)
        outputs: Tensors = {
            "scores": np.full(items.shape, -np.inf, np.float32),
            "task_scores": np.full((*items.shape, tasks), -np.inf, np.float32),
            "known": np.zeros(items.shape, np.int32),
            "status": np.zeros((len(items), 1), np.int32),
        }
        rows = {item: row for row, item in enumerate(self._ids.tolist())}
        for row in range(len(items)):
            request = {name: tensor[row] for name, tensor in inputs.items()}
            status = self._status(request, lambda: Status.OK)
            outputs["status"][row] = status
            if status:
                continue
            task_scores, scores = self._scored(request)
            for column, item in enumerate(items[row].tolist()):
                found = rows.get(item)
                if found is not None:
                    outputs["known"][row, column] = 1
                    outputs["scores"][row, column] = scores[found]
                    outputs["task_scores"][row, column] = task_scores[found]
        return outputs

    def _scored(self, request: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Task scores [N, T] and final scores [N]."""
        task_scores = self._scores
        if self._vectors is not None:
            task_scores = np.repeat((self._vectors @ request["query"])[:, None], len(self.schema.tasks), axis=1)
        weights = request["task_weights"]
        weights = np.where(np.isnan(weights), np.float32(1), weights)
        return task_scores, (task_scores * weights).sum(axis=1)

    def _passing(self, request: Mapping[str, NDArray[Any]]) -> tuple[Status, NDArray[np.bool_]]:
        passing = np.zeros(len(self._ids), np.bool_)

        def filtered() -> Status:
            nonlocal passing
            try:
                passing = self._programs.passing(request["filter"])
            except OtherFingerprint:
                return Status.FILTER_FINGERPRINT
            except MalformedProgram:
                return Status.FILTER_MALFORMED
            return Status.OK

        return self._status(request, filtered), passing

    def _status(self, request: Mapping[str, NDArray[Any]], filtered: Callable[[], Status]) -> Status:
        """The smallest code of what is wrong."""

        def lowest(name: str) -> int:
            return int(request[name].min(initial=0)) if name in request else 0

        numbers = [request[feature.name] for feature in self.schema.user_features if feature.kind == "number"]
        if any(np.isinf(values).any() for values in numbers):
            return Status.USER_FEATURE
        if lowest("history") < -1:
            return Status.HISTORY
        if "query" in request and not np.isfinite(request["query"]).all():
            return Status.QUERY
        if status := filtered():
            return status
        if lowest("exclude") < -1:
            return Status.EXCLUDE
        if np.isinf(request["task_weights"]).any():
            return Status.TASK_WEIGHTS
        if "search" in request:
            probes, candidates = request["search"].tolist()
            if not (0 <= probes <= self.schema.clusters and 0 <= candidates <= self.schema.max_candidates):
                return Status.SEARCH
        if lowest("items") < -1:
            return Status.ITEMS
        if "filter" in request and request["filter"][1] + 2 > self._max_filter_words:
            return Status.FILTER_TOO_LONG
        return Status.OK

    def _check(self, inputs: Mapping[str, NDArray[Any]], others: Mapping[str, tuple[Any, int | None]]) -> int:
        """The batch size; as Triton, refuse other inputs, dtypes and shapes than the model's configuration has."""
        expected = {**self._user, **others}
        if inputs.keys() != expected.keys():
            raise SchemaMismatch(f"expected the inputs {sorted(expected)}, got {sorted(inputs)}")
        for name, (dtype, dims) in expected.items():
            tensor = inputs[name]
            shape_fits = tensor.ndim == 2 and dims in (None, tensor.shape[1])
            if tensor.dtype != dtype or not shape_fits:
                raise SchemaMismatch(
                    f"input {name!r}: got {tensor.dtype} {list(tensor.shape)}, expected {dims} of {dtype}"
                )
        return len(inputs["task_weights"])
