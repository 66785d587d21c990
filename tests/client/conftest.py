"""A schema of every kind of feature, and a transport that needs no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import Answer, Feature, ModelConfig, Schema
from client.errors import ModelNotFound

Tensors = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session")
def schema() -> Schema:
    return Schema(
        name="movies",
        user_features=(
            Feature("user_id", "category", "integer"),
            Feature("age", "number"),
            Feature("gender", "category", "string"),
        ),
        item_features=(
            Feature("title_id", "category", "integer", filter=True),
            Feature("studio", "category", "string", filter=True),
            Feature("poster", "category", "string"),
            Feature("genres", "tags", "string", filter=True),
            Feature("cast", "tags", "integer", filter=True),
            Feature("year", "number", filter=True),
            Feature("released", "date", filter=True),
        ),
        tasks=("click", "watch"),
        history_length=10,
        query_dims=0,
        max_results=20,
        max_candidates=100,
        clusters=16,
    )


@pytest.fixture(scope="session")
def query_schema() -> Schema:
    return Schema("vectors", (), (Feature("year", "number", filter=True),), ("similarity",), 0, 4, 5, 50, 8)


@pytest.fixture(scope="session")
def answer() -> Callable[..., dict[str, NDArray[Any]]]:
    """Outputs of the contract for `batch` rows: row b has items 100b, 100b + 1, ... with falling scores."""

    def make(schema: Schema, batch: int, *, count: int | None = None) -> dict[str, NDArray[Any]]:
        results, tasks = schema.max_results, len(schema.tasks)
        valid = results if count is None else count
        ids = np.arange(batch, dtype=np.int64)[:, None] * 100 + np.arange(results)
        scores = np.tile(np.linspace(1, 0.5, results, dtype=np.float32), (batch, 1))
        task_scores = np.stack([scores / (task + 1) for task in range(tasks)], axis=2)
        ids[:, valid:], scores[:, valid:], task_scores[:, valid:] = -1, -np.inf, -np.inf
        return {
            "item_ids": ids,
            "scores": scores,
            "task_scores": task_scores,
            "count": np.full((batch, 1), valid, np.int32),
            "status": np.zeros((batch, 1), np.int32),
            "stats": np.tile(np.array([3, 500, 200, 0], np.int32), (batch, 1)),
        }

    return make


class FakeTransport:
    """Answers every call with `answer`; keeps what it was sent. `fail` is raised by the next call of `infer`."""

    def __init__(
        self, schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]], max_batch_size: int = 64
    ) -> None:
        self.schema_text = schema.to_json()
        self.answers = lambda batch: answer(schema, batch)
        self.max_batch_size = max_batch_size
        self.parameters: dict[str, str] | None = None
        self.version = ""
        self.versions: list[str] = []  # asked for
        self.headers: list[Mapping[str, str]] = []
        self.requests: list[Tensors] = []
        self.timeouts: list[float] = []
        self.config_reads = 0
        self.fail: Exception | None = None

    def infer(
        self, model: str, inputs: Tensors, timeout: float, *, version: str = "", headers: Mapping[str, str]
    ) -> Answer:
        assert model == "retrieval"
        self.versions.append(version)
        self.headers.append(headers)
        self.requests.append(inputs)
        self.timeouts.append(timeout)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return Answer(self.answers(len(inputs["search"])), self.version)

    def model_config(self, model: str, timeout: float, *, version: str = "", headers: Mapping[str, str]) -> ModelConfig:
        if model == "retrieval_canary":
            raise ModelNotFound(model)
        assert model == "retrieval"
        assert timeout > 0
        self.config_reads += 1
        parameters = {"schema": self.schema_text} if self.parameters is None else self.parameters
        return ModelConfig(parameters, self.max_batch_size)


@pytest.fixture
def transport(schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]]) -> FakeTransport:
    return FakeTransport(schema, answer)
