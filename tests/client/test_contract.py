"""Older and newer clients and artifacts: they work together, or say precisely why not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from client import (
    Answer,
    Codec,
    ConnectionFailed,
    Contract,
    F,
    LimitExceeded,
    ModelConfig,
    Request,
    Retry,
    RowStatusError,
    Rules,
    Schema,
    SchemaError,
    SchemaMismatch,
    Status,
    Unsupported,
    _core,
    item_in,
)
from client._messages import infer_answer
from client.filters.compiler import MAX_WORDS, Opcode
from client.testing import FakeServer
from tests.client.shells import SHELLS

# parameters of a config.pbtxt as builders wrote it before there was any of client/contract.py
RECORDED = r"""
parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }
parameters { key: "fingerprint" value { string_value: "-3762874048239674765" } }
parameters {
  key: "schema"
  value {
    string_value: "{\"clusters\":7,\"history_length\":10,\"item_features\":[{\"filter\":true,\"kind\":\"tags\",\"name\":\"genres\",\"values\":\"string\"},{\"filter\":true,\"kind\":\"number\",\"name\":\"year\",\"values\":null}],\"max_candidates\":50,\"max_results\":5,\"name\":\"films\",\"query_dims\":0,\"tasks\":[\"click\"],\"user_features\":[{\"filter\":false,\"kind\":\"category\",\"name\":\"user_id\",\"values\":\"integer\"}],\"version\":1}"
  }
}
parameters { key: "snapshot" value { string_value: "5eed" } }
"""  # noqa: E501 - as it was written
SCHEMA_FIELDS = {
    "clusters", "history_length", "item_features", "max_candidates", "max_results", "name", "query_dims", "tasks",
    "user_features", "version",
}  # fmt: skip
OLD_OPCODES = frozenset(range(1, 8))


def recorded() -> dict[str, str]:
    config = model_config_pb2.ModelConfig()
    text_format.Parse(RECORDED, config)
    return {name: value.string_value for name, value in config.parameters.items()}


class Other(FakeServer):
    """A server of another release: `edit` are changes of its parameters (None: it has no such one), `more` are outputs
    that it has beside those of the contract."""

    edit: Mapping[str, str | None] = {}
    more: Mapping[str, NDArray[Any]] = {}
    status = 0
    config_reads = 0

    def model_config(self, *arguments: Any, **named: Any) -> ModelConfig:
        self.config_reads += 1
        config = super().model_config(*arguments, **named)
        edited = {**config.parameters, **self.edit}
        return ModelConfig({k: v for k, v in edited.items() if v is not None}, config.max_batch_size)

    def infer(self, *arguments: Any, **named: Any) -> Answer:
        answer = super().infer(*arguments, **named)
        outputs = {**answer.outputs, **self.more}
        if self.status:
            outputs["status"] = np.full_like(outputs["status"], self.status)
        return Answer(outputs, answer.version)


@pytest.fixture
def server() -> Other:
    schema = Schema.from_json(recorded()["schema"])
    items = [{"item_id": i, "year": 1990 + i, "genres": ["War"]} for i in range(9)]
    return Other(schema, items, contract=Contract(opcodes=OLD_OPCODES))


@pytest.fixture(params=["sync", "async", "grpc"])
def client(request: pytest.FixtureRequest, server: Other) -> Iterator[Any]:
    if request.param == "grpc":
        with server.serving() as address, SHELLS["sync"](address, timeout=5.0) as client:
            yield client
    else:
        with SHELLS[request.param]("fake:8001", timeout=5.0, transport=server) as client:
            yield client


def test_what_is_exported_is_read_again() -> None:
    for written in (
        Contract(),
        Contract(frozenset({1, 300}), 500, 0),
        Contract(items=7),
        Contract(rules=Rules((), 0.5)),
        Contract(rules=Rules((("genres", 2), ("a b", 1)))),
    ):
        assert Contract.read(written.parameters()) == written
    assert Contract().opcodes == frozenset(Opcode)


@pytest.mark.parametrize(
    "text", ["{", "3", '{"at_most": 3, "mmr": 1}', '{"at_most": {}}', '{"at_most": {}, "mmr": "x"}', "[" * 10**5]
)
def test_rules_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SchemaError, match="'diversity' of the model configuration"):
        Contract.read({"diversity": text})


def test_an_artifact_from_before_contracts(client: Any, server: Other) -> None:
    server.edit = {**dict.fromkeys(Contract(items=1).parameters()), **recorded()}
    assert client.retrieve(user={"user_id": 1}, filter=F.year >= 1995).item_ids.tolist() == [5, 6, 7, 8]
    assert client.contract == Contract(OLD_OPCODES, MAX_WORDS, None, 1)


def test_clients_from_before_contracts_read_what_is_exported(server: Other) -> None:
    """They refuse every field of the schema that they do not know, and read no other parameter but the snapshot."""
    schema = json.loads(server.schema.to_json())
    assert schema.keys() == SCHEMA_FIELDS
    assert all(feature.keys() == {"filter", "kind", "name", "values"} for feature in schema["item_features"])
    assert server.schema.to_json() == recorded()["schema"]
    assert server.schema.fingerprint == int(recorded()["fingerprint"])


def test_a_newer_contract_is_refused_before_anything_else_is_read(client: Any, server: Other) -> None:
    server.edit = {"contract": "2", "schema": "of another form"}
    with pytest.raises(SchemaError, match=r"'retrieval' at .*version 2 of the wire contract, this client 1; update"):
        client.retrieve()
    assert server.calls == []


@pytest.mark.parametrize(
    "edit",
    [
        {"contract": "one"},
        {"contract": ""},
        {"contract": "0"},
        {"contract": "9" * 5000},
        {"filter_opcodes": "1,2"},
        {"max_filter_words": "-1"},
        {"max_filter_words": "²"},
        {"items": "many"},
    ],
    ids=str,
)
def test_a_damaged_parameter_is_named(server: Other, edit: dict[str, str]) -> None:
    server.edit = edit
    with server.client() as client, pytest.raises(SchemaError, match=f"{next(iter(edit))}.*export the artifact again"):
        client.retrieve()


def test_newer_parameters_outputs_and_schema_fields_are_ignored(client: Any, server: Other) -> None:
    schema = json.loads(server.schema.to_json()) | {"more": 1}
    schema["item_features"][0]["unit"] = "m"
    server.edit = {"schema": json.dumps(schema), "another": "parameter", "filter_opcodes": "1 2 3 4 5 6 7 99"}
    server.more = {"explained": np.zeros((1, 5), np.int32)}
    assert client.retrieve(user={"user_id": 1}, filter=F.year >= 1995).count == 4
    assert client.schema == server.schema


def test_an_output_of_an_unknown_type_is_ignored(schema: Schema, answer: Any) -> None:
    response = service_pb2.ModelInferResponse(model_version="3")
    for name, datatype in (("text", "BYTES"), ("scores", "FP32")):
        response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        response.raw_output_contents.append(bytes(4))
    assert list(infer_answer(response, "server").outputs) == ["scores"]
    outputs = answer(schema, 1)
    del outputs["scores"]
    with pytest.raises(SchemaMismatch, match=r"no output 'scores' of float32; .*another version of the wire contract"):
        Codec(schema).decode(outputs, [1])


def test_an_unknown_status_is_named(client: Any, server: Other) -> None:
    server.status = 77
    with pytest.raises(RowStatusError, match=r"status 77, which this client does not know: .*newer; update") as raised:
        client.retrieve()
    assert raised.value.status == 77


def test_a_newer_schema_version_is_named(client: Any, server: Other) -> None:
    schema = json.loads(server.schema.to_json()) | {"version": 2}
    server.edit = {"schema": json.dumps(schema)}
    with pytest.raises(SchemaError, match=r"the schema has version 2, this client reads 1; .*pip install"):
        client.retrieve()


def test_an_opcode_that_the_artifact_lacks_is_refused_by_name(client: Any, server: Other) -> None:
    server.edit = {"filter_opcodes": "1 2 3 4 6"}
    assert client.retrieve(filter=F.genres.any_of("War") & ~(F.year < 1995)).count == 4
    sent = len(server.calls)
    wanted = (F.year > 1) & ~(F.genres.all_of("War", "Noir") | F.year.is_unknown())
    with pytest.raises(Unsupported, match=r"does not know ALL, UNKNOWN \(it knows AND, OR, NOT, ANY, RANGE.*export it"):
        client.retrieve(filter=wanted)
    good, refused = client.retrieve_many([Request(filter=F.year > 1), Request(filter=F.year.is_unknown())])
    assert good.count == 5
    assert isinstance(refused, Unsupported)
    with pytest.raises(Unsupported, match=r"does not know ITEMS \("):
        client.retrieve(filter=item_in([7]))
    assert len(server.calls) == sent + 1


def test_an_opcode_that_a_rollout_brings_is_used(server: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "_REREAD", -1.0)
    server.edit = {"filter_opcodes": "1 2 3 4 5 6"}
    with server.client() as client:
        with pytest.raises(Unsupported):
            client.retrieve(filter=F.year.is_unknown())
        server.edit = {}
        assert client.retrieve(filter=F.year.is_unknown()).count == 0


def test_the_lower_bound_of_filter_words_counts(server: Other) -> None:
    ten = F.genres.is_in(map(str, range(7)))
    for mine, its, most in ((None, 10, 10), (10, 50, 10), (50, 9, 9), (9, 50, 9), (2, 50, 2), (None, 10**9, MAX_WORDS)):
        server.edit = {"max_filter_words": str(its)}
        with server.client(max_filter_words=mine) as client:
            assert client.contract.max_filter_words == min(its, mine or its)
            if most >= 10:
                client.retrieve(filter=ten)
            else:
                with pytest.raises(
                    LimitExceeded, match=rf"got 10 words, at most {most} are allowed \(max_filter_words"
                ):
                    client.retrieve(filter=ten)
            client.retrieve()  # no filter takes two words, which are always allowed
    assert len(server.calls) == 9


@pytest.mark.parametrize("words", [1, 0, -1, 2.5, True, "9"])
def test_a_bound_that_is_none(server: Other, words: Any) -> None:
    with pytest.raises(ValueError, match=r"max_filter_words: got .*expected a whole number of at least 2"):
        server.client(max_filter_words=words)


def test_the_fake_server_refuses_what_is_too_long_or_unknown() -> None:
    schema = Schema.from_json(recorded()["schema"])
    server = FakeServer(schema, [{"item_id": 1}], contract=Contract(frozenset({1, 2, 3, 4}), 6))
    every = Codec(schema)
    wanted = [F.genres.any_of("a", "b", "c"), F.genres.any_of("a", "b", "c", "d"), F.year > 1]
    inputs = every.encode([Request(user={"user_id": 1}, filter=one) for one in wanted])
    statuses = server.infer("retrieval", inputs, 1.0).outputs["status"][:, 0].tolist()
    assert statuses == [Status.OK, Status.FILTER_TOO_LONG, Status.FILTER_MALFORMED]


def test_another_artifact_of_the_same_version_is_seen_within_a_minute(server: Other) -> None:
    """The tasks have another name, and everything else is the same."""
    with server.client() as client:
        assert [hit.tasks for hit in client.retrieve(k=1)] == [{"click": 1.0}]
        reads = server.config_reads
        renamed = json.loads(server.schema.to_json()) | {"tasks": ["buy"]}
        server.edit = {"schema": json.dumps(renamed)}
        assert [hit.tasks for hit in client.retrieve(k=1)] == [{"click": 1.0}]
        assert server.config_reads == reads
        (endpoint,) = client._core.balancer.endpoints
        endpoint.served["retrieval"].read_at -= 61
        assert [hit.tasks for hit in client.retrieve(k=1)] == [{"buy": 1.0}]
        first = server.config_reads
        client.retrieve()
        assert server.config_reads == first


def test_another_artifact_of_the_same_version_is_seen_when_a_server_comes_back(server: Other) -> None:
    with server.client(retry=Retry(attempts=3, first=0.001)) as client:
        client.retrieve()
        server.edit = {"schema": json.dumps(json.loads(server.schema.to_json()) | {"tasks": ["buy"]})}
        server.fail(ConnectionFailed("it is restarted"))
        assert [hit.tasks for hit in client.retrieve(k=1)] == [{"buy": 1.0}]


def test_inputs_of_no_length_are_padding_or_malformed() -> None:
    """As a server answers those who write the tensors by themselves."""
    schema = Schema.from_json(recorded()["schema"])
    server = FakeServer(schema, [{"item_id": 1}])
    inputs = Codec(schema).encode([Request(user={"user_id": 1})])
    none = np.empty((1, 0), np.int64)
    for change, status in (
        ({"history": none, "exclude": none}, Status.OK),
        ({"filter": none}, Status.FILTER_MALFORMED),
    ):
        answer = server.infer("retrieval", {**inputs, **change}, 1.0)
        assert answer.outputs["status"].tolist() == [[status]]
        assert answer.outputs["count"].tolist() == [[0 if status else 1]]
