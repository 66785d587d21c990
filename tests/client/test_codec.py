"""What a request becomes on the wire, what an answer becomes, and what is refused before either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import (
    Codec,
    F,
    InvalidValue,
    LimitExceeded,
    Request,
    RequestError,
    Retrieval,
    RowStatusError,
    Schema,
    SchemaMismatch,
    Stats,
    Status,
    UnknownName,
    compile_filter,
)
from client.hashing import UNKNOWN_KEY, string_key

Answer = Callable[..., dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def codec(schema: Schema) -> Codec:
    return Codec(schema)


@pytest.fixture(scope="module")
def query_codec(query_schema: Schema) -> Codec:
    return Codec(query_schema)


def _is(tensor: NDArray[Any], expected: Any, dtype: type) -> None:
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor, np.array(expected, dtype), strict=True)


def test_a_full_request(codec: Codec, schema: Schema) -> None:
    condition = F.genres.any_of("Drama", "War") & (F.year >= 1990)
    request = Request(
        user={"user_id": 42, "age": 33, "gender": "F"},
        history=[5, 6, 7],
        filter=condition,
        exclude=[8],
        k=10,
        task_weights={"watch": 0.5},
        probes=4,
        candidates=50,
    )
    tensors = codec.encode([request])
    assert list(tensors) == ["user_id", "gender", "age", "history", "filter", "exclude", "task_weights", "search"]
    _is(tensors["user_id"], [[42]], np.int64)
    _is(tensors["gender"], [[string_key("F")]], np.int64)
    _is(tensors["age"], [[33]], np.float32)
    _is(tensors["history"], [[5, 6, 7, -1, -1, -1, -1, -1]], np.int64)
    program = compile_filter(condition, schema).tolist()
    _is(tensors["filter"], [program + [0] * (16 - len(program))], np.int64)
    _is(tensors["exclude"], [[8, -1, -1, -1, -1, -1, -1, -1]], np.int64)
    _is(tensors["task_weights"], [[np.nan, 0.5]], np.float32)
    _is(tensors["search"], [[4, 50]], np.int32)


def test_an_empty_request_sends_neutral_values(codec: Codec) -> None:
    tensors = codec.encode([Request()])
    _is(tensors["user_id"], [[UNKNOWN_KEY]], np.int64)
    _is(tensors["gender"], [[UNKNOWN_KEY]], np.int64)
    _is(tensors["age"], [[np.nan]], np.float32)
    _is(tensors["history"], [[-1] * 8], np.int64)
    _is(tensors["filter"], [[0] * 16], np.int64)
    _is(tensors["exclude"], [[-1] * 8], np.int64)
    _is(tensors["task_weights"], [[np.nan, np.nan]], np.float32)
    _is(tensors["search"], [[0, 0]], np.int32)


def test_rows_of_a_batch_keep_their_places(codec: Codec) -> None:
    tensors = codec.encode(
        [
            Request(user={"user_id": 1, "age": 10.5}, history=range(9), exclude=range(17), probes=2),
            Request(user={"user_id": 2, "gender": "M"}, history=[3], filter=F.title_id.is_in(range(40))),
            Request(user={"age": 30}, task_weights={"click": 2, "watch": 3}, candidates=7),
        ]
    )
    _is(tensors["user_id"], [[1], [2], [UNKNOWN_KEY]], np.int64)
    _is(tensors["gender"], [[UNKNOWN_KEY], [string_key("M")], [UNKNOWN_KEY]], np.int64)
    _is(tensors["age"], [[10.5], [np.nan], [30]], np.float32)
    _is(tensors["history"], [[*range(9), *[-1] * 7], [3] + [-1] * 15, [-1] * 16], np.int64)
    _is(tensors["exclude"], [[*range(17), *[-1] * 15], [-1] * 32, [-1] * 32], np.int64)
    assert tensors["filter"].shape == (3, 64)
    assert tensors["filter"][[0, 2]].any() == np.False_
    assert tensors["filter"][1, 3:43].tolist() == list(range(40))
    _is(tensors["task_weights"], [[np.nan, np.nan], [np.nan, np.nan], [2, 3]], np.float32)
    _is(tensors["search"], [[2, 0], [0, 0], [0, 7]], np.int32)


@pytest.mark.parametrize(("length", "padded"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (1000, 1024)])
def test_lengths_are_padded_to_powers_of_two(codec: Codec, length: int, padded: int) -> None:
    assert codec.encode([Request(exclude=range(length))])["exclude"].shape == (1, padded)


@pytest.mark.parametrize(("keys", "padded"), [(1, 16), (13, 16), (14, 32), (65_533, 65_536)])
def test_programs_are_padded_to_powers_of_two(codec: Codec, keys: int, padded: int) -> None:
    tensors = codec.encode([Request(filter=F.title_id.is_in(range(keys)))])
    assert tensors["filter"].shape == (1, padded)


@pytest.mark.parametrize(
    "history",
    [
        list(range(100, 125)),
        tuple(range(100, 125)),
        range(100, 125),
        (item for item in range(100, 125)),
        np.arange(100, 125),
        np.arange(100, 125, dtype=np.uint16),
        [np.int32(item) for item in range(100, 125)],
        [-5, *range(100, 125)],  # what is cut is not looked at
    ],
    ids=["list", "tuple", "range", "generator", "int64", "uint16", "numpy scalars", "bad but old"],
)
def test_a_history_is_cut_to_the_newest(codec: Codec, history: Iterable[int]) -> None:
    _is(codec.encode([Request(history=history)])["history"], [[*range(115, 125), *[-1] * 6]], np.int64)


@pytest.mark.parametrize("ids", [[], (), set(), np.array([]), np.array([], np.int64), None])
def test_no_ids(codec: Codec, ids: Any) -> None:
    tensors = codec.encode([Request(history=ids, exclude=ids)])
    _is(tensors["history"], [[-1] * 8], np.int64)
    _is(tensors["exclude"], [[-1] * 8], np.int64)


@pytest.mark.parametrize("place", ["history", "exclude"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, -1], r"\[1\]: got -1 \(int\), expected an item id"),
        ([Status.HISTORY, -1], r"\[1\]: got -1 \(int\), expected an item id"),
        ([2**63], r"\[0\]: got 9223372036854775808"),
        ([True], r"\[0\]: got True"),
        ([1, 2.0], r"\[1\]: got 2.0 \(float\)"),
        (["1"], r"\[0\]: got '1'"),
        ([None], r"\[0\]: got None"),
        ([[1]], r"\[0\]: got \[1\]"),
        ("123", "expected a sequence of item ids"),
        (b"123", "expected a sequence of item ids"),
        (7, "expected a sequence of item ids"),
        (np.array([1.0, 2.0]), r"\[0\]: got 1.0 \(float\)"),
        (np.array([[1, 2]]), "one dimension of item ids"),
        (np.array(3), "one dimension of item ids"),
        (np.array([4, -2]), r"\[1\]: got -2"),
        (np.array([4, 2**63], np.uint64), r"\[1\]: got 9223372036854775808"),
        (np.array([True]), r"\[0\]: got True"),
        ([1, np.array([1, 2])], r"\[1\]: got array\(\[1, 2\]\)"),
        ([np.array(1)], r"\[0\]: got array\(1\)"),
        (np.ma.MaskedArray([4, 5, 6], [False, True, False]), r"\[1\]: got None"),
    ],
    ids=str,
)
def test_bad_ids(codec: Codec, place: str, ids: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=place + ".*" + message):
        codec.check(Request(**{place: ids}))


def test_a_bad_id_of_a_long_history_is_named_by_its_own_position(codec: Codec) -> None:
    for history in ([*range(30), -7], np.array([*range(30), -7])):
        with pytest.raises(InvalidValue, match=r"history\[30\]: got -7"):
            codec.check(Request(history=history))


@pytest.mark.parametrize(
    ("user", "keys", "age"),
    [
        ({"user_id": None, "gender": None, "age": None}, [UNKNOWN_KEY, UNKNOWN_KEY], np.nan),
        ({"age": float("nan")}, [UNKNOWN_KEY, UNKNOWN_KEY], np.nan),
        ({"age": np.float32("nan")}, [UNKNOWN_KEY, UNKNOWN_KEY], np.nan),
        ({"user_id": np.int32(4), "gender": np.str_("F"), "age": np.float16(0.5)}, [4, string_key("F")], 0.5),
        ({"user_id": True, "age": False}, [1, UNKNOWN_KEY], 0.0),
        ({"user_id": np.True_, "age": np.True_}, [1, UNKNOWN_KEY], 1.0),
        ({"user_id": -(2**63) + 1, "gender": ""}, [-(2**63) + 1, string_key("")], np.nan),
        ({"age": 3.4028234663852886e38}, [UNKNOWN_KEY, UNKNOWN_KEY], np.finfo(np.float32).max),
    ],
    ids=str,
)
def test_user_values(codec: Codec, user: dict[str, Any], keys: list[int], age: float) -> None:
    tensors = codec.encode([Request(user=user)])
    assert [tensors["user_id"].item(), tensors["gender"].item()] == keys
    _is(tensors["age"], [[age]], np.float32)


@pytest.mark.parametrize(
    ("user", "error", "message"),
    [
        ({"user": 1}, UnknownName, "unknown user feature 'user'; did you mean 'user_id'?"),
        ({"colour": 1}, UnknownName, "this artifact has age, gender, user_id"),
        ({3: 1}, UnknownName, "unknown user feature 3"),
        ({"year": 1}, UnknownName, "unknown user feature 'year'"),
        ({"user_id": "42"}, InvalidValue, r"user feature 'user_id': got '42' \(str\), expected an integer"),
        ({"user_id": 42.0}, InvalidValue, "expected an integer"),
        ({"user_id": float("nan")}, InvalidValue, "leave an unknown value out"),
        ({"user_id": [42]}, InvalidValue, "expected an integer"),
        ({"user_id": 2**63}, InvalidValue, r"below 2\*\*63"),
        ({"user_id": -(2**63)}, InvalidValue, r"above -2\*\*63"),
        ({"gender": 1}, InvalidValue, r"user feature 'gender': got 1 \(int\), expected a string"),
        ({"gender": b"F"}, InvalidValue, "expected a string"),
        ({"gender": "\udc00"}, InvalidValue, "lone surrogate"),
        ({"age": "33"}, InvalidValue, r"user feature 'age': got '33' \(str\), expected a number"),
        ({"age": float("inf")}, InvalidValue, "finite number within float32"),
        ({"age": -1e39}, InvalidValue, "finite number within float32"),
        ({"age": 10**400}, InvalidValue, "within float64"),
        ({"age": np.array([1, 2])}, InvalidValue, "expected a number"),
        ([("age", 3)], InvalidValue, "a mapping of feature names to values"),
        ([], InvalidValue, "a mapping of feature names to values"),
        (np.zeros(2), InvalidValue, "a mapping of feature names to values"),  # of no truth value, as a pandas.Series
    ],
    ids=str,
)
def test_bad_users(codec: Codec, user: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec.check(Request(user=user))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, LimitExceeded, r"k: got 0, expected 1 to 20 \(the artifact's max_results\)"),
        ({"k": 21}, LimitExceeded, "k: got 21, expected 1 to 20"),
        ({"k": -1}, LimitExceeded, "k: got -1"),
        ({"k": 10.0}, InvalidValue, "k: got 10.0"),
        ({"k": True}, InvalidValue, "k: got True"),
        ({"k": "10"}, InvalidValue, "k: got '10'"),
        ({"probes": 0}, LimitExceeded, r"probes: got 0, expected 1 to 16 \(the artifact's clusters\)"),
        ({"probes": 17}, LimitExceeded, "probes: got 17"),
        ({"candidates": 101}, LimitExceeded, "candidates: got 101, expected 1 to 100"),
        ({"candidates": 2**40}, LimitExceeded, "candidates: got"),
        ({"task_weights": {"clicks": 1}}, UnknownName, "unknown task 'clicks'; did you mean 'click'?"),
        ({"task_weights": {"click": float("inf")}}, InvalidValue, r"task_weights\['click'\]: got inf"),
        ({"task_weights": {"click": float("nan")}}, InvalidValue, "not NaN"),
        ({"task_weights": {"click": None}}, InvalidValue, "expected a number"),
        ({"task_weights": {"click": 1e39}}, InvalidValue, "within float32"),
        ({"task_weights": [1, 2]}, InvalidValue, "a mapping of task names to weights"),
        ({"query": [1.0]}, InvalidValue, "query: this artifact computes it"),
        ({"filter": "year > 3"}, InvalidValue, "a condition made with F"),
        ({"filter": F.year}, InvalidValue, "a condition made with F"),
        ({"filter": F.yeer > 3}, UnknownName, "did you mean 'year'"),
    ],
    ids=str,
)
def test_bad_settings(codec: Codec, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec.check(Request(**change))
    assert issubclass(error, RequestError)


def test_an_artifact_without_history(schema: Schema) -> None:
    import dataclasses

    codec = Codec(dataclasses.replace(schema, history_length=0))
    assert "history" not in codec.encode([Request(user={"age": 3}, history=[])])
    with pytest.raises(InvalidValue, match="history: this artifact takes none"):
        codec.check(Request(history=[1]))


@pytest.mark.parametrize(
    "query", [[1, 2, 3, 4], (1.0, 2.0, 3.0, 4.0), np.arange(1, 5), np.arange(1, 5, dtype=np.float16)]
)
def test_a_query_vector(query_codec: Codec, query: Any) -> None:
    tensors = query_codec.encode([Request(query=query), Request(query=query)])
    assert list(tensors) == ["query", "filter", "exclude", "task_weights", "search"]
    _is(tensors["query"], [[1, 2, 3, 4], [1, 2, 3, 4]], np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "query: missing; this artifact has no user tower and needs a vector of 4 numbers"),
        ({"query": [1, 2, 3]}, r"of shape \[3\], expected numbers of shape \[4\]"),
        ({"query": [[1, 2, 3, 4]]}, r"of shape \[1, 4\]"),
        ({"query": [1, 2, 3, "4"]}, "expected numbers"),
        ({"query": [[1], [2, 3]]}, "a vector of 4 numbers"),
        ({"query": [True] * 4}, "got bool"),
        ({"query": [1, 2, np.nan, 4]}, r"query\[2\]: got nan"),
        ({"query": [1, np.inf, 3, 4]}, r"query\[1\]: got inf"),
        ({"query": [1, 2, 3, 1e39]}, r"query\[3\]: got inf"),
        ({"query": [1, 2, 3, 4], "user": {"age": 3}}, "has no user tower"),
        ({"query": [1, 2, 3, 4], "user": np.zeros(2)}, "has no user tower"),
        ({"query": [1, 2, 3, 4], "history": [3]}, "has no user tower"),
    ],
    ids=str,
)
def test_bad_queries(query_codec: Codec, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        query_codec.check(Request(**change))


def test_an_answer(codec: Codec, schema: Schema, answer: Answer) -> None:
    outputs = answer(schema, 2, count=5)
    first, second = codec.decode(outputs, [3, 20], latency=0.25)
    assert isinstance(first, Retrieval)
    assert isinstance(second, Retrieval)
    _is(first.item_ids, [0, 1, 2], np.int64)
    _is(second.item_ids, [100, 101, 102, 103, 104], np.int64)
    _is(second.scores, outputs["scores"][1, :5], np.float32)
    _is(second.task_scores, outputs["task_scores"][1, :5], np.float32)
    assert second.task_names == ("click", "watch")
    assert second.stats == Stats(clusters_probed=3, rows_passing=500, rows_scanned=200, exact=False)
    assert first.latency == second.latency == 0.25
    assert first.stats.exact is False


@pytest.mark.parametrize("status", [status for status in Status if status])
def test_a_row_with_a_status_spares_its_neighbours(
    codec: Codec, schema: Schema, answer: Answer, status: Status
) -> None:
    outputs = answer(schema, 3)
    outputs["status"][1], outputs["count"][1] = status, 0
    before, bad, after = codec.decode(outputs, [20] * 3)
    assert isinstance(bad, RowStatusError)
    assert bad.status is status
    assert status.name.lower() in str(bad)
    assert isinstance(before, Retrieval)
    assert isinstance(after, Retrieval)
    assert after.item_ids[0] == 200


def test_a_status_of_a_newer_release(codec: Codec, schema: Schema, answer: Answer) -> None:
    outputs = answer(schema, 1)
    outputs["status"][0] = 99
    (bad,) = codec.decode(outputs, [20])
    assert isinstance(bad, RowStatusError)
    assert bad.status == 99
    assert "update the client" in str(bad)


@pytest.mark.parametrize("name", ["item_ids", "scores", "task_scores", "count", "status", "stats"])
def test_answers_that_break_the_contract(codec: Codec, schema: Schema, answer: Answer, name: str) -> None:
    outputs = answer(schema, 2)
    for broken in (outputs[name][:1], outputs[name][:, :-1], outputs[name][0], outputs[name].astype(np.float64)):
        with pytest.raises(SchemaMismatch, match=f"output '{name}': got .* expected"):
            codec.decode({**outputs, name: broken}, [20, 20])
    with pytest.raises(SchemaMismatch, match=f"no output '{name}'"):
        codec.decode({key: value for key, value in outputs.items() if key != name}, [20, 20])


@pytest.mark.parametrize("count", [-1, 21])
def test_an_impossible_count(codec: Codec, schema: Schema, answer: Answer, count: int) -> None:
    outputs = answer(schema, 1)
    outputs["count"][0] = count
    with pytest.raises(SchemaMismatch, match="output 'count'"):
        codec.decode(outputs, [20])
