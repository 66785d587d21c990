"""Both clients follow an artifact that is replaced while they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from client import (
    Codec,
    F,
    Feature,
    ModelNotFound,
    RequestError,
    RowStatusError,
    Schema,
    SchemaMismatch,
    Status,
    UnknownName,
    _core,
)
from client import Request as R
from client.testing import FakeServer
from tests.client.shells import SHELLS


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, transport: Any) -> Iterator[Any]:
    with SHELLS[request.param]("server:8001", timeout=5.0, transport=transport) as client:
        yield client


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong requests may cause the schema to be read at any time."""
    monkeypatch.setattr(_core, "_REREAD", -1.0)


def replace(transport: Any, answer: Any, schema: Schema, *, version: str = "") -> None:
    transport.schema_text = schema.to_json()
    transport.answers = lambda batch: answer(schema, batch)
    transport.version = version


def test_another_shape_is_read_and_asked_again(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    client.retrieve()
    replace(transport, answer, dataclasses.replace(schema, max_results=5))
    assert client.retrieve().count == 5
    assert transport.config_reads == 2
    assert len(transport.requests) == 3


def test_refused_tensors_are_encoded_anew(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    client.retrieve()
    features = (*schema.user_features, Feature("city", "category", "string"))
    replace(transport, answer, dataclasses.replace(schema, user_features=features))
    transport.fail = SchemaMismatch("expected 9 inputs but got 8")
    assert client.retrieve(history=iter([1, 2])).count == 20
    assert transport.config_reads == 2
    first, second = transport.requests[-2:]
    assert "city" not in first
    assert "city" in second
    assert second["history"][0, :2].tolist() == [1, 2]  # an iterator can be read once only


def test_a_mismatch_of_the_same_schema_is_raised(client: Any, transport: Any) -> None:
    client.retrieve()
    transport.fail = SchemaMismatch("other inputs")
    with pytest.raises(SchemaMismatch, match="other inputs"):
        client.retrieve()
    assert transport.config_reads == 2
    assert len(transport.requests) == 2


def test_another_fingerprint_is_compiled_anew(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    client.retrieve()
    changed = dataclasses.replace(schema, item_features=schema.item_features[1:])

    def answers(batch: int) -> Any:
        outputs = answer(changed, batch)
        if transport.requests[-1]["filter"][0, 0] != changed.fingerprint:
            outputs["status"][:] = Status.FILTER_FINGERPRINT
        return outputs

    transport.schema_text, transport.answers = changed.to_json(), answers
    assert client.retrieve(filter=F.year > 3).count == 20
    assert transport.config_reads == 2


def test_a_fingerprint_refused_by_the_same_schema(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    outputs = {**answer(schema, 1), "status": np.array([[Status.FILTER_FINGERPRINT]], np.int32)}
    transport.answers = lambda batch: outputs
    with pytest.raises(RowStatusError, match="filter_fingerprint"):
        client.retrieve(filter=F.year > 3)
    assert transport.config_reads == 2
    assert len(transport.requests) == 1


@pytest.mark.usefixtures("fast")
def test_a_filter_feature_that_was_added_is_found(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    client.retrieve()
    added = dataclasses.replace(schema, item_features=(*schema.item_features, Feature("price", "number", filter=True)))
    replace(transport, answer, added)
    assert client.retrieve(filter=F.price < 10).count == 20
    assert transport.requests[-1]["filter"][0, 0] == added.fingerprint
    results = client.retrieve_many([R(filter=F.price < 9), R(filter=F.prize < 9)])
    assert results[0].count == 20
    assert isinstance(results[1], UnknownName)


def test_wrong_requests_cause_a_reading_at_most_once_a_second(client: Any, transport: Any) -> None:
    client.retrieve()
    for _ in range(3):
        with pytest.raises(UnknownName):
            client.retrieve(filter=F.price < 10)
    assert transport.config_reads == 1


def test_an_answer_of_another_version_is_not_read_by_the_old_schema(
    client: Any, transport: Any, schema: Schema, answer: Any
) -> None:
    """The same shapes, but the tasks have changed places: nothing but the version tells."""
    transport.version = "1"
    assert client.retrieve()[0].tasks == {"click": 1.0, "watch": 0.5}
    assert transport.config_reads == 2  # when it connects, and of version 1
    replace(transport, answer, dataclasses.replace(schema, tasks=("watch", "click")), version="2")
    result = client.retrieve(task_weights={"watch": 3.0})
    assert result[0].tasks == {"watch": 1.0, "click": 0.5}
    assert transport.requests[-2]["task_weights"][0, 1] == 3.0
    assert transport.requests[-1]["task_weights"][0, 0] == 3.0
    assert transport.config_reads == 3
    client.retrieve()
    assert (transport.config_reads, len(transport.requests)) == (3, 4)


def test_a_version_of_the_same_schema_is_read_once_and_not_asked_again(client: Any, transport: Any) -> None:
    for version in ("1", "2", "1", "2"):
        transport.version = version
        client.retrieve()
    assert transport.config_reads == 3
    assert len(transport.requests) == 4


def test_a_late_answer_of_the_version_before(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    """A request of the old schema is answered by the old version after another call has seen the new one."""
    transport.version = "1"
    client.retrieve()
    replaced = dataclasses.replace(schema, tasks=("watch", "click"))
    (endpoint,) = endpoints(client)
    old = endpoint.served["retrieval"]
    new = dataclasses.replace(old, codec=Codec(replaced), snapshots={"2": ""})

    def answers(batch: int) -> Any:
        endpoint.served["retrieval"] = new  # as another thread would
        return answer(schema, batch)

    transport.answers = answers
    assert client.retrieve()[0].tasks == {"click": 1.0, "watch": 0.5}
    assert endpoint.served["retrieval"] is new
    assert transport.config_reads == 2


def test_a_version_that_is_gone_before_its_schema_was_read(client: Any, transport: Any, answer: Any) -> None:
    """What it answered cannot be read: the request is sent again."""
    client.retrieve()
    (endpoint,) = endpoints(client)
    model_config = transport.model_config

    def gone(*arguments: Any, version: str = "", **named: Any) -> Any:
        if version == "2":
            transport.version = "3"
            raise ModelNotFound("version 2 is not found")
        return model_config(*arguments, version=version, **named)

    transport.model_config, transport.version = gone, "2"
    assert client.retrieve().count == 20
    assert len(transport.requests) == 3
    assert endpoint.served["retrieval"].snapshots == {"3": ""}
    assert endpoint.failures == 0


def test_a_reading_of_the_same_schema_keeps_the_versions(client: Any, transport: Any) -> None:
    transport.version = "1"
    client.retrieve()
    transport.fail = SchemaMismatch("other inputs")
    with pytest.raises(SchemaMismatch):
        client.retrieve()
    client.retrieve()
    assert transport.config_reads == 3


def endpoints(client: Any) -> Any:
    return client.__dict__.get("_client", client)._core.balancer.endpoints


def test_replaced_at_every_step(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    counter = iter(range(5, 15))

    def answers(batch: int) -> Any:
        replaced = dataclasses.replace(schema, max_results=next(counter))
        transport.schema_text = dataclasses.replace(replaced, max_results=replaced.max_results + 5).to_json()
        return answer(replaced, batch)

    transport.answers = answers
    with pytest.raises(SchemaMismatch):
        client.retrieve()
    assert len(transport.requests) == 2


def test_a_request_that_the_new_schema_refuses(client: Any, transport: Any, schema: Schema, answer: Any) -> None:
    client.retrieve()
    replace(transport, answer, dataclasses.replace(schema, max_results=5))
    good, wrong = client.retrieve_many([R(k=5), R(k=15)])
    assert good.count == 5
    assert isinstance(wrong, RequestError)
    assert [len(inputs["search"]) for inputs in transport.requests] == [1, 2, 1]


def test_one_version_throughout(transport: Any) -> None:
    for shell in SHELLS.values():
        with shell("server:8001", version=7, transport=transport) as client:
            client.retrieve()
    assert transport.versions == ["7", "7"]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("other", [False, True], ids=["the same schema", "another schema"])
def test_a_model_that_takes_fewer_requests_at_once(schema: Schema, kind: str, other: bool) -> None:
    """A batch that is too large by now is divided anew, and none of it fails."""
    items = [{"item_id": item} for item in range(20)]
    server = FakeServer(schema, items, max_batch_size=16)
    requests = [R(exclude=range(start), k=1) for start in range(15)]
    with SHELLS[kind]("server:8001", timeout=30, transport=server) as client:
        client.retrieve_many(requests)
        server._max_batch_size = 4
        server.replace(items, schema=dataclasses.replace(schema, max_results=5) if other else None)
        results = client.retrieve_many(requests)
        assert [result.item_ids.tolist() for result in results] == [[start] for start in range(15)]
        assert [len(call.inputs["filter"]) for call in server.calls][-4:] == [4, 4, 4, 3]
