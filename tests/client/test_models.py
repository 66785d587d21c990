from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from client import Hit, Request, Retrieval, Stats


def _retrieval(count: int) -> Retrieval:
    scores = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)[:count]
    return Retrieval(
        item_ids=np.array([7, 8, 9, 10])[:count],
        scores=scores,
        task_scores=np.stack([scores * 2, scores], axis=1),
        task_names=("click", "watch"),
        stats=Stats(3, 5000, 1200, exact=False),
        latency=0.00125,
    )


def test_hits() -> None:
    retrieval = _retrieval(2)
    expected = [Hit(7, 0.5, {"click": 1.0, "watch": 0.5}), Hit(8, 0.25, {"click": 0.5, "watch": 0.25})]
    assert retrieval.hits == list(retrieval) == [retrieval[0], retrieval[1]] == expected
    assert retrieval[-1] == expected[-1]
    assert type(retrieval[0].item_id) is int
    assert type(retrieval[0].score) is float
    assert len(retrieval) == retrieval.count == 2
    with pytest.raises(IndexError):
        retrieval[2]


def test_a_slice_is_a_list_of_hits() -> None:
    for retrieval in (_retrieval(4), _retrieval(1), _retrieval(0)):
        for part in (slice(2), slice(1), slice(-2, None), slice(None, None, -1), slice(9, 12)):
            assert retrieval[part] == retrieval.hits[part]


def test_nothing_found_is_falsy() -> None:
    empty = _retrieval(0)
    assert not empty
    assert empty.hits == list(empty) == []


@pytest.mark.parametrize(
    ("count", "start"),
    [
        (4, "<Retrieval of 4 [7: 0.5, 8: 0.25, 9: 0.125, ...] in 1.25 ms, "),
        (1, "<Retrieval of 1 [7: 0.5] in 1.25 ms, "),
        (0, "<Retrieval of 0 [] in 1.25 ms, "),
    ],
)
def test_repr(count: int, start: str) -> None:
    assert repr(_retrieval(count)) == start + "3 clusters, 1,200 of 5,000 passing rows scanned>"


def test_requests_are_immutable_and_named() -> None:
    request = Request(k=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.k = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Request({"age": 3})  # type: ignore[misc]
