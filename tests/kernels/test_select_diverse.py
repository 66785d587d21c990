"""select_diverse against its reference, for equality."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from tests.kernels import reference
from tests.kernels.arguments import Arguments, arguments, groups_of_rows, inverse_lengths, run

NAN, INF = np.nan, np.inf
SPECIAL = [0.0, -0.0, INF, -INF, NAN, 3e38, -3e38, 1e-45]
NO_LENGTHS = torch.empty(0)


def candidates(values: list[float], dims: int = 2) -> Arguments:
    """One request whose candidates are rows and items 0, 1, .. of equal vectors, without any rule."""
    count = len(values)
    return {
        "values": torch.tensor([values]),
        "ids": torch.arange(count)[None],
        "rows": torch.arange(count, dtype=torch.int32)[None],
        "task_scores": torch.zeros(1, count, 0),
        "status": torch.zeros(1, dtype=torch.int32),
        "vectors": torch.ones(count, dims).half(),
        "inverse_lengths": NO_LENGTHS,
        **groups_of_rows([[]] * count, []),
        "mmr": 1.0,
        "k": count,
    }


def chosen(given: Arguments) -> list[int]:
    """Ids of the results of the first request."""
    ids, _, _, count = run("select_diverse", given)
    return ids[0, : int(count[0])].tolist()


def check(given: Arguments, groups: list[list[int]], note: str) -> None:
    """All outputs against the reference."""
    ids, scores, tasks, count = (tensor.numpy() for tensor in run("select_diverse", given))
    values, item_ids, task_scores = (given[name].numpy() for name in ("values", "ids", "task_scores"))
    k = given["k"]
    for b, status in enumerate(given["status"].tolist()):
        expected = reference.select_diverse(
            values[b],
            item_ids[b],
            given["rows"][b].tolist(),
            given["vectors"].numpy(),
            given["inverse_lengths"].numpy(),
            groups if len(given["most"]) else [],
            given["most"].tolist(),
            given["mmr"],
            k if status == 0 else 0,
        )
        where, past = f"{note}, request {b}", k - len(expected)
        assert count[b] == len(expected), where
        assert ids[b].tolist() == item_ids[b, expected].tolist() + [-1] * past, where
        np.testing.assert_array_equal(scores[b], [*values[b, expected], *[-INF] * past], where)
        padded = np.concatenate([task_scores[b, expected], np.full((past, task_scores.shape[2]), -INF, np.float32)])
        np.testing.assert_array_equal(tasks[b], padded, where)


def random_request(seed: int, mmr: float) -> tuple[Arguments, list[list[int]]]:
    generator, random = np.random.default_rng(seed), Random(seed)
    batch, rows, dims = 3, 96, random.choice([1, 3, 16, 19, 40])
    count = random.choice([0, 1, 7, 40, 96])
    vectors = generator.normal(size=(rows, dims))
    vectors[generator.random(rows) < 0.1] = 0
    vectors[1::5] = vectors[0]  # equal ones: ties of similarity
    halves = torch.from_numpy(vectors * 30).half()
    values = generator.normal(size=(batch, count)).round(1).astype(np.float32)
    if seed % 2:
        odd = generator.random(values.shape) < 0.3
        values[odd] = generator.choice(np.array(SPECIAL, np.float32), values.shape)[odd]
    if seed % 3 == 0:
        values = -np.sort(-values, axis=1)  # as a search returns them
    of_row = np.stack([generator.permutation(rows)[:count] for _ in range(batch)]).astype(np.int32)
    ids = of_row.astype(np.int64) * 7
    ids[ids == 14] = 2**63 - 1
    ids[generator.random(ids.shape) < 0.1] = -1
    of_row[generator.random(ids.shape) < 0.05] = random.choice([-1, 96, 2**31 - 1, -(2**31)])
    authors, genres = random.randint(1, 30), random.randint(1, 12)
    groups = [
        ([random.randrange(authors)] if random.random() < 0.8 else [])
        + [authors + g for g in range(genres) if random.random() < 0.3]
        for _ in range(rows)
    ]
    most = [random.choice([1, 2, 3])] * authors + [random.choice([1, 4, 9])] * genres
    if seed % 5 == 0:
        groups, most = [[]] * rows, []
    given = {
        "values": torch.from_numpy(values),
        "ids": torch.from_numpy(ids),
        "rows": torch.from_numpy(of_row),
        "task_scores": torch.from_numpy(generator.normal(size=(batch, count, 2)).astype(np.float32)),
        "status": torch.tensor([0, random.choice([0, 3]), 0], dtype=torch.int32),
        "vectors": halves,
        "inverse_lengths": inverse_lengths(halves) if mmr < 1 else NO_LENGTHS,
        **groups_of_rows(groups, most),
        "mmr": mmr,
        "k": random.choice([0, 1, 5, 20, 100]),
    }
    return given, groups


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("mmr", [1.0, 0.9, 0.7, 0.3, 0.0])
def test_random_candidates(mmr: float) -> None:
    for seed in range(40):
        given, groups = random_request(seed, mmr)
        check(given, groups, f"seed {seed}, mmr {mmr}")


def test_without_rules_it_is_select() -> None:
    for seed in range(0, 60, 5):
        given, _ = random_request(seed, 1.0)
        given["ids"][(given["rows"] < 0) | (given["rows"] >= len(given["vectors"]))] = -1
        plain = {name: given[name] for name in ("values", "ids", "task_scores", "status", "k")}
        for one, other in zip(run("select", plain), run("select_diverse", given), strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), f"seed {seed}"


def test_relevance_alone_in_any_units_is_the_order_of_values() -> None:
    """As mmr approaches 1: scaling keeps the order, and where it makes values equal the larger one is chosen first."""
    given = candidates([1.0, 3e38, 2.0, -3e38, NAN, INF, 1.5, -INF])
    order = chosen(given)
    assert order == [5, 1, 2, 6, 0, 3, 4, 7]
    given |= {"mmr": 1 - 1e-9, "inverse_lengths": inverse_lengths(given["vectors"])}
    assert chosen(given) == order


def test_at_most_by_hand() -> None:
    """Items 0, 1, 2, 4 of author 0, 3 and 5 of author 1, 6 of none; genre 2 on 0, 3 and 6, at most one."""
    groups = [[0, 2], [0], [0], [1, 2], [0], [1], [2]]
    given = candidates([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]) | groups_of_rows(groups, [2, 2, 1])
    assert chosen(given) == [0, 1, 5]  # fewer than k: the rule is not broken
    assert chosen({**given, "k": 2}) == [0, 1]
    given |= groups_of_rows(groups, [2, 2, 3])
    assert chosen(given) == [0, 1, 3, 5, 6]
    assert chosen(given | groups_of_rows(groups, [0, -5, 1])) == [6]


def test_maximal_marginal_relevance_by_hand() -> None:
    """Two directions: the second of the better direction must wait for the first of the other."""
    given = candidates([1.0, 0.9, 0.5, 0.4, 0.0])
    given["vectors"] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]]).half()
    given["inverse_lengths"] = inverse_lengths(given["vectors"])
    # After item 0 of similarities 1, 0, -1 and 0: .45 - .5, .25 - 0, .2 + .5, 0; then with item 3: -, .25, -, 0.
    assert chosen({**given, "mmr": 0.5}) == [0, 3, 2, 4, 1]
    assert chosen({**given, "mmr": 0.95}) == [0, 1, 2, 3, 4]
    # Nothing but similarity: the opposite, then those at a right angle by value, then the same direction.
    assert chosen({**given, "mmr": 0.0}) == [0, 3, 2, 4, 1]
    assert chosen({**given, "mmr": 0.5, **groups_of_rows([[0], [1], [1], [0], [1]], [1, 2])}) == [0, 2, 4]


def test_equal_scores_go_to_the_larger_value_and_then_the_smaller_id() -> None:
    given = candidates([1.0, 1.0, 1.0, 0.0])
    given["ids"] = torch.tensor([[30, 20, 10, 5]])
    given["inverse_lengths"] = inverse_lengths(given["vectors"])
    assert chosen({**given, "mmr": 0.5}) == [10, 20, 30, 5]
    assert chosen({**given, "mmr": 0.0}) == [10, 20, 30, 5]
    given["ids"] = torch.tensor([[30, 20, 10, -1]])
    assert chosen({**given, "mmr": 0.5}) == [10, 20, 30]


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    for seed in range(20):
        given, _ = random_request(seed, 0.6)
        whole = chosen({**given, "k": 50})
        for k in range(0, 50, 7):
            assert chosen({**given, "k": k}) == whole[:k], f"seed {seed}, k {k}"


def test_many_groups_and_long_lists_of_them() -> None:
    """The table of counts grows, and is empty again for the next request."""
    rows, wide = 64, 400
    generator = np.random.default_rng(3)
    groups = [sorted(generator.permutation(50_000)[:wide].tolist()) for _ in range(rows)]
    given = candidates([float(-i) for i in range(rows)]) | groups_of_rows(groups, [2] * 50_000)
    for name in ("values", "ids", "rows", "task_scores", "status"):
        given[name] = torch.cat([given[name]] * 3)
    check(given, groups, "seed 3")
    assert 5 < len(chosen(given)) < rows


@pytest.mark.parametrize(
    ("name", "position", "value", "message"),
    [
        ("group_offsets", 0, -1, r"group_offsets: got -1 \.\. 1, expected an ascending span within 4 groups of rows"),
        ("group_offsets", 1, 5, r"group_offsets: got 0 \.\. 5, expected an ascending span"),
        ("group_offsets", 1, -(2**63), r"group_offsets: got 0 \.\. -9223372036854775808, expected an ascending span"),
        ("group_offsets", 4, 2**63 - 1, r"group_offsets: got 3 \.\. 9223372036854775807, expected an ascending span"),
        ("group_offsets", 3, 1, r"group_offsets: got 2 \.\. 1, expected an ascending span"),
        ("groups", 0, -1, "groups: got -1, expected a group below 2"),
        ("groups", 3, 2, "groups: got 2, expected a group below 2"),
        ("groups", 2, 2**31 - 1, "groups: got 2147483647, expected a group below 2"),
    ],
)
@pytest.mark.parametrize("mmr", [1.0, 0.5])
def test_damaged_groups_are_refused_where_they_are_touched(
    name: str, position: int, value: int, message: str, mmr: float
) -> None:
    given = candidates([4.0, 3.0, 2.0, 1.0]) | groups_of_rows([[0], [1], [0], [1]], [4, 4]) | {"mmr": mmr}
    if mmr < 1:
        given["inverse_lengths"] = inverse_lengths(given["vectors"])
    given[name][position] = value
    with pytest.raises(RuntimeError, match=f"silvertriton::select_diverse: {message}.*; the groups contradict"):
        run("select_diverse", given)
    # A row that is no candidate is not looked at.
    row = position if name == "groups" else min(position, 3)
    given["ids"][0, :] = -1
    given["ids"][0, (row + 2) % 4] = 1
    assert chosen(given) == [1]


@pytest.mark.parametrize("mmr", [0.0, 0.5])
def test_damaged_vectors_and_lengths_do_no_harm(mmr: float) -> None:
    """Every candidate is still chosen once."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        given = candidates(generator.normal(size=40).tolist(), dims=5) | {"mmr": mmr}
        bits = generator.integers(0, 2**16, (40, 5)).astype(np.uint16)
        given["vectors"] = torch.from_numpy(bits.view(np.float16))
        lengths = generator.choice([NAN, INF, -INF, 0.0, 1.0, 1e30], 40).astype(np.float32)
        given["inverse_lengths"] = torch.from_numpy(lengths)
        assert sorted(chosen(given)) == list(range(40)), f"seed {seed}"


DEAD_THREADS = """
import torch
from tests.kernels.arguments import arguments, run
torch.set_num_threads(4)
given = arguments("select_diverse", 2000, 64)
given["groups"] = torch.full_like(given["groups"], -1)
try:
    run("select_diverse", given)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_damage_found_on_another_thread_keeps_its_message() -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", DEAD_THREADS], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.startswith("silvertriton::select_diverse: groups: got -1, expected a group below 12;")


def test_an_empty_batch_and_no_rows() -> None:
    given = arguments("select_diverse")
    for name in ("values", "ids", "rows", "task_scores", "status"):
        given[name] = given[name][:0]
    assert [tuple(tensor.shape) for tensor in run("select_diverse", given)] == [(0, 7), (0, 7), (0, 7, 2), (0,)]
    none = candidates([]) | {"vectors": torch.empty(0, 3).half(), "k": 2}
    assert run("select_diverse", none)[0].tolist() == [[-1, -1]]
