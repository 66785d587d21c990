"""`explain` against searches whose every step is known, at the fake server and step by step."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from random import Random
from typing import Any

import pytest

from client import (
    AsyncRetrievalClient,
    Condition,
    ConnectionFailed,
    Contract,
    DeadlineExceeded,
    Explanation,
    F,
    Feature,
    InvalidValue,
    LimitExceeded,
    Request,
    Rules,
    Schema,
    SchemaMismatch,
    UnknownName,
    Unsupported,
    _core,
    everything,
    item_in,
    matches,
)
from client.filters.conditions import And, Not, Or
from client.testing import FakeServer
from tests.client.clustered import CLUSTERS, GROUPS, SCHEMA, Clustered, ClusteredServer

MOST = SCHEMA.max_candidates
MARGINAL = Rules((("author", 2),), 0.5)
FEWEST = dataclasses.replace(SCHEMA, max_candidates=SCHEMA.max_results)


def random_filter(random: Random, depth: int) -> Condition:
    if depth and random.random() < 0.7:
        operands = tuple(random_filter(random, depth - 1) for _ in range(random.randrange(1, 4)))
        return random.choice([And(operands), Or(operands), Not(operands[0])])
    return random.choice(
        [
            F.group == random.randrange(GROUPS),
            F.group.is_in(random.sample(range(GROUPS), 3)),
            F.year >= random.randrange(1990, 2000),
            F.year.between(1992, 1998),
            item_in(random.sample(range(500), 400)),
            everything(),
        ]
    )


def random_request(random: Random) -> Request:
    return Request(
        query=[1.0],
        filter=random_filter(random, random.randrange(4)) if random.random() < 0.6 else None,
        exclude=random.sample(range(500), 60) if random.random() < 0.3 else None,
        k=random.choice([None, 1, 3, 7, 10]),
        probes=random.choice([None, None, 1, 2, CLUSTERS]),
        candidates=random.choice([None, None, 2, 8, MOST]),
    )


def leaves(condition: Condition) -> set[Condition]:
    if isinstance(condition, And | Or) and condition.operands:
        return set().union(*map(leaves, condition.operands))
    return leaves(condition.operand) if isinstance(condition, Not) else {condition}


def check(explanation: Explanation, network: Clustered, request: Request, item: int) -> None:
    """Against what is known of every step of the search."""
    k = request.k or SCHEMA.max_results
    asked = network.asked(request)
    excluded = item in (request.exclude or [])
    outcome, reasons = explanation.outcome, list(explanation.reasons)
    assert (explanation.item_id, explanation.k) == (item, k)
    if item not in network.items:
        assert reasons == ["unknown_item", *(["excluded"] if excluded else [])]
        return
    passes = request.filter is None or matches(request.filter, network.items[item], SCHEMA)
    assert explanation.score == network.score[item]
    assert (outcome == "returned") == (item in asked.chosen[:k])
    assert ("excluded" in reasons, "filtered" in reasons) == (excluded, not passes)
    if outcome == "returned":
        assert (reasons, explanation.position) == ([], asked.chosen.index(item) + 1)
        return
    assert reasons[0] == outcome
    if not passes:
        assert request.filter is not None
        assert not any(matches(part, network.items[item], SCHEMA) for part in explanation.failing)
        assert set().union(*map(leaves, explanation.failing)) <= leaves(request.filter)
    if "outranked" in reasons and network.mmr == 1:
        check_outranked(explanation, network, request)
    if excluded or not passes:
        return
    if network.mmr < 1:
        check_marginal(explanation, network, request)
        return
    every = network.asked(request, probes=CLUSTERS)
    if outcome == "not_probed":
        assert item not in asked.candidates
        assert network.cluster[item] not in asked.clusters
        assert item in every.candidates
        assert every.chosen.index(item) + 1 == explanation.position <= k
        assert (explanation.probes, explanation.candidates) == (CLUSTERS, None)
    if outcome == "not_a_candidate":
        assert item not in asked.candidates
        assert item not in every.candidates
        more = network.asked(request, probes=CLUSTERS, candidates=network.schema.max_candidates)
        if explanation.position is None:
            assert item not in more.candidates
        else:
            assert more.chosen.index(item) + 1 == explanation.position <= k
    if outcome == "diversity":
        assert network.at_most is not None
        deciding = decider(explanation, network, request)
        assert deciding.chosen == network.choose([*deciding.candidates, item])
        assert item not in deciding.chosen[:k]


def decider(explanation: Explanation, network: Clustered, request: Request) -> Any:
    instead = {"probes": explanation.probes, "candidates": explanation.candidates}
    return network.asked(request, **{name: value for name, value in instead.items() if value is not None})


def check_marginal(explanation: Explanation, network: Clustered, request: Request) -> None:
    """Of maximal marginal relevance only what is said to be certain."""
    deciding, item = decider(explanation, network, request), explanation.item_id
    if explanation.outcome == "outranked":
        assert (explanation.certain, explanation.kth_score, explanation.gap) == (True, None, None)
        assert deciding.chosen.index(item) + 1 == explanation.position > explanation.k
    else:
        all_are = len(deciding.passing) <= (explanation.candidates or request.candidates or 0)
        assert explanation.certain == (explanation.outcome == "diversity" and all_are)
        assert not explanation.certain or item in deciding.candidates
        assert explanation.outcome == "diversity" or not (all_are and explanation.position is None)
        assert item not in deciding.chosen[: explanation.k] or explanation.outcome != "diversity"


def check_outranked(explanation: Explanation, network: Clustered, request: Request) -> None:
    last = decider(explanation, network, request).chosen[explanation.k - 1]
    assert explanation.kth_score == network.score[last]
    assert explanation.gap == network.score[last] - network.score[explanation.item_id]
    assert (-network.score[last], last) < (-network.score[explanation.item_id], explanation.item_id)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, {"returned", "unknown_item", "excluded", "filtered", "outranked", "not_probed", "not_a_candidate"}),
        ({"at_most": 2}, {"returned", "outranked", "not_probed", "not_a_candidate", "diversity"}),
        ({"at_most": 3, "mmr": 0.6}, {"returned", "outranked", "diversity"}),
        ({"at_most": 10, "schema": FEWEST}, {"returned", "outranked", "not_probed"}),
    ],
    ids=["plain", "at most", "mmr", "as many candidates as results"],
)
@pytest.mark.parametrize("start", range(3))
def test_random_explanations_are_true(rules: dict[str, Any], expected: set[str], start: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(4 * start, 4 * start + 4):
        random = Random(seed)
        network = Clustered(random, **rules)
        server = ClusteredServer(network)
        with server.client(timeout=30) as client:
            for _ in range(8):
                request = random_request(random)
                if request.candidates is not None and request.candidates > network.schema.max_candidates:
                    request = dataclasses.replace(request, candidates=None)
                for item in [*random.sample(list(network.items), 4), random.randrange(500)]:
                    server.calls.clear()
                    explanation = client.explain(item, request)
                    assert len(server.calls) <= (2 if not rules else 5)
                    if explanation.outcome == "outranked" and (explanation.probes, explanation.candidates) == (
                        None,
                        None,
                    ):
                        assert len(server.calls) == 1
                    try:
                        check(explanation, network, request, item)
                    except AssertionError as error:
                        raise AssertionError(f"seed {seed}: {request}: {explanation!r}: {explanation}") from error
                    assert str(item) in str(explanation)
                    outcomes[explanation.outcome] += 1
    assert expected <= outcomes.keys(), f"from seed {4 * start}: {outcomes}"


MOVIES = [{"item_id": item, "year": 1950 + item, "genres": ["War"] if item % 2 else ["Drama"]} for item in range(1, 60)]


@pytest.fixture
def server(schema: Schema) -> FakeServer:
    return FakeServer(schema, MOVIES)


@pytest.mark.parametrize(
    ("item", "request_", "text"),
    [
        (3, Request(k=5), "Item 3 is returned: number 3 of 5 wanted, with a score of 1.9322."),
        (99, Request(), "Item 99 is not in the snapshot that is served."),
        (99, Request(exclude=[99]), "Item 99 is not in the snapshot that is served; the request excludes it too."),
        (3, Request(exclude=[3, 4]), "Item 3 is not returned because the request excludes it."),
        (
            40,
            Request(k=5, exclude=[40], filter=(F.year < 1960) & F.genres.any_of("War") & (F.year > 1900)),
            "Item 40 is not returned because the request excludes it. Besides, it does not pass the filter: it fails "
            "F.year < 1960 and F.genres == 'War'. Besides, its score, 0.677966, is below that of result 5, 1.72881, by "
            "1.05.",
        ),
        (
            7,
            Request(k=5),
            "Item 7 is not returned because it is number 7: its score, 1.79661, is below that of result 5, 1.86441, by "
            "0.0678.",
        ),
        (
            4,
            Request(k=5, candidates=3),
            "Item 4 is not returned because it was not among the candidates that the search chose for scoring, "
            "although its score, 1.89831, would be enough; asked again with all clusters (probes=16) and the most "
            "candidates (candidates=100), it is number 4.",
        ),
    ],
)
def test_what_it_says(server: FakeServer, item: int, request_: Request, text: str) -> None:
    with server.client(timeout=30) as client:
        explanation = client.explain(item, request_)
    assert str(explanation) == text
    assert explanation.version == 1


@pytest.mark.parametrize(
    ("outcome", "details", "expected"),
    [
        (
            "not_probed",
            {"position": 4, "probes": 64},
            "did not read its cluster; asked again with all clusters (probes=64), it is number 4 with a score of 1.5.",
        ),
        ("outranked", {"kth_score": 1.5}, "its score, 1.5, is no better than that of result 10."),
        ("outranked", {"position": 12, "rules": MARGINAL}, "the rules chose it as number 12, and 10 were wanted."),
        (
            "diversity",
            {"rules": MARGINAL, "certain": False},
            "(at most 2 of one author, maximal marginal relevance with mmr 0.5) leave it out: results before it take "
            "its place, and its score, 1.5, does not count then. That was found by elimination",
        ),
        ("not_a_candidate", {}, "although its score, 1.5, would be enough."),
        ("not_a_candidate", {"candidates": 9}, "would be enough, not even with the most candidates (candidates=9)."),
        ("filtered", {"failing": (item_in(range(500)),)}, "..."),
    ],
)
def test_the_words_of_other_outcomes(outcome: Any, details: dict[str, Any], expected: str) -> None:
    text = str(Explanation(5, outcome, (outcome,), 10, **{"score": 1.5, **details}))
    assert expected in text
    assert len(text) < 400


def test_the_parts_of_a_filter_that_decide(server: FakeServer) -> None:
    """Of item 3: year 1953, genres War."""
    fails, holds = F.year > 1990, F.year < 1990
    other = F.genres == "Drama"
    with server.client(timeout=30) as client:
        for condition, failing in [
            (fails, (fails,)),
            (fails & other, (fails, other)),
            (holds & other, (other,)),
            (holds & (fails | other), (fails | other,)),
            (fails | (holds & other), (fails | other,)),
            (~holds, (~holds,)),
            (~(holds | fails), (~holds,)),
            (~(holds & (fails | ~other)), (~(holds & ~other),)),
            (~(fails | ~(other & holds)), (other,)),
            (item_in([4, 5]) & holds, (item_in([4, 5]),)),
            (~everything() | fails, (~everything() | fails,)),
            (Or(()), (Or(()),)),
        ]:
            explanation = client.explain(3, Request(filter=condition))
            assert (explanation.outcome, explanation.failing) == ("filtered", failing), str(condition)


def test_whether_the_item_is_a_given_one_is_not_asked(server: FakeServer) -> None:
    """However many ids there are: only the request itself and the item alone are."""
    others, with_it = item_in(range(4, 20_000)), item_in(range(20_000))
    with server.client(timeout=30) as client:
        for condition, failing in [
            (others, (others,)),
            (~with_it, (~with_it,)),
            (with_it & (others | ~with_it), (others | ~with_it,)),
        ]:
            server.calls.clear()
            explanation = client.explain(3, Request(filter=condition))
            assert (explanation.outcome, explanation.failing) == ("filtered", failing)
            (call,) = server.calls
            assert len(call.inputs["filter"]) == 2
        server.calls.clear()
        assert client.explain(3, Request(filter=with_it & (F.year > 1990))).failing == (F.year > 1990,)
        assert [len(call.inputs["filter"]) for call in server.calls] == [3]


def test_filters_of_any_size_and_depth(schema: Schema) -> None:
    """A program has no room beside such a filter for one more word, an expression none for one more level."""
    deep: Condition = F.cast == 0
    for level in range(1, 64):
        deep = And((F.cast == level, deep)) if level % 2 else Or((F.cast == level, deep))
    long = [
        F.title_id.is_in(range(498)),
        ~F.title_id.is_in(range(497)),
        item_in(range(10, 508)),
        F.cast.all_of(*range(498)),
        F.year.is_in(range(125)),
    ]
    server = FakeServer(schema, MOVIES, contract=Contract(max_filter_words=501))
    with server.client(timeout=60) as client:
        for condition in (deep, *long):
            expected = matches(condition, MOVIES[2], schema)
            server.calls.clear()
            explanation = client.explain(3, Request(filter=condition, k=20))
            assert explanation.outcome == ("returned" if expected else "filtered")
            assert not any(matches(part, MOVIES[2], schema) for part in explanation.failing)
            assert max(int(row[1]) + 2 for call in server.calls for row in call.inputs["filter"]) <= 501
        assert client.explain(3, Request(filter=deep, k=20)).failing[0] != deep


def test_a_server_that_takes_one_request_at_a_time(schema: Schema) -> None:
    server = FakeServer(schema, MOVIES, max_batch_size=1)
    with server.client(timeout=30) as client:
        assert client.explain(3, Request(filter=(F.year > 1990) & (F.year < 1960))).failing == (F.year > 1990,)
        assert len(server.calls) == 4  # as asked, the item alone, and both parts


def test_a_model_that_takes_fewer_requests_at_once_has_come(schema: Schema) -> None:
    server = FakeServer(schema, MOVIES, max_batch_size=16)
    with server.client(timeout=30) as client:
        client.retrieve()
        server._max_batch_size = 2
        server.replace(MOVIES)
        assert client.explain(3, Request(filter=(F.year > 1990) & (F.year < 1960))).failing == (F.year > 1990,)
        assert [len(call.inputs["filter"]) for call in server.calls][1:] == [4, 2, 2]


def test_what_is_wrong_with_the_request_is_raised(server: FakeServer) -> None:
    with server.client(timeout=30) as client:
        with pytest.raises(UnknownName, match="did you mean 'year'"):
            client.explain(3, Request(filter=F.yaer > 3))
        with pytest.raises(LimitExceeded, match="k: got 21"):
            client.explain(3, Request(k=21))
        for item in (-1, 2.0, "3", None, True):
            with pytest.raises(InvalidValue, match="item_id"):
                client.explain(item, Request())
        assert server.calls == []
        server.fail(ConnectionFailed("on purpose"))
        assert client.explain(3, Request(exclude=iter([3]))).outcome == "excluded"
        server.delay = 0.2
        with pytest.raises(DeadlineExceeded):
            client.explain(4, Request(k=5, candidates=3), timeout=0.3)  # two calls


def test_asyncio(server: FakeServer) -> None:
    async def explained() -> Explanation:
        async with server.async_client(timeout=30) as client:
            return await client.explain(3, Request(filter=F.year > 1990))

    assert asyncio.run(explained()).outcome == "filtered"


def test_one_endpoint_answers_all_of_it(schema: Schema) -> None:
    """The other one may serve other items, whatever `hedge` says."""
    servers = [FakeServer(schema, MOVIES), FakeServer(schema, MOVIES[:20])]
    for server in servers:
        server.delay = 0.05

    async def explained() -> None:
        transports = [server.asynchronous for server in servers]
        async with AsyncRetrievalClient(["one:1", "two:1"], transport=transports, hedge=0.001, timeout=30) as client:
            await client.explain(4, Request(k=5, candidates=3))

    asyncio.run(explained())
    assert sorted(len(server.calls) for server in servers) == [0, 2]


class Replaced(FakeServer):
    """Replaces its artifact just before the calls of these numbers."""

    at: frozenset[int] = frozenset()
    next_schema: Schema | None = None

    def infer(self, *arguments: Any, **named: Any) -> Any:
        if len(self.calls) in self.at:
            self.replace(MOVIES[:-1], schema=self.next_schema)
        return super().infer(*arguments, **named)


@pytest.mark.parametrize("other", [False, True], ids=["the same schema", "another schema"])
def test_all_is_asked_of_one_version(schema: Schema, other: bool) -> None:
    request = Request(k=5, candidates=3)  # of item 4 it takes two calls
    server = Replaced(schema, MOVIES)
    if other:
        server.next_schema = dataclasses.replace(schema, clusters=4, max_candidates=50)
    with server.client(timeout=30) as client:
        assert client.explain(4, request).version == 1
        server.at = frozenset({3})  # between both of the second time
        explanation = client.explain(4, request)
        assert (explanation.outcome, explanation.version, explanation.position) == ("not_a_candidate", 2, 4)
        assert (explanation.probes, explanation.candidates) == ((4, 50) if other else (16, 100))
        server.at = frozenset(range(100))
        with pytest.raises(SchemaMismatch, match="replaced twice"):
            client.explain(4, request)


class Ending(FakeServer):
    """Ends its canary just before the call of this number."""

    at = -1

    def infer(self, *arguments: Any, **named: Any) -> Any:
        if len(self.calls) == self.at:
            self.end_canary()
        return super().infer(*arguments, **named)


def test_one_whose_canary_ends_meanwhile_is_of_the_served_version(schema: Schema) -> None:
    request = Request(k=5, candidates=3)  # of item 4 it takes two calls
    server = Ending(schema, MOVIES)
    server.start_canary(MOVIES[:-1], share=1.0, schema=dataclasses.replace(schema, clusters=4, max_candidates=50))
    with server.client(timeout=30) as client:
        canary = client.explain(4, request)
        assert (canary.version, canary.probes, canary.candidates) == (2, 4, 50)
        server.at = 3  # between both of the second time
        served = client.explain(4, request)
        assert (served.version, served.probes, served.candidates) == (1, 16, 100)
        assert len(server.calls) == 2 + 2 + 2
        assert {call.model for call in server.calls[4:]} == {"retrieval"}


def test_rules_that_come_with_a_new_version_count(schema: Schema) -> None:
    """Nothing else of the schema changes."""
    before, after = Clustered(Random(1)), Clustered(Random(1), at_most=1)
    server = ClusteredServer(before)
    with server.client(timeout=30) as client:
        client.retrieve(query=[1.0])
        server._network, server._contract, server._version = after, after.contract, 2
        request = Request(query=[1.0], k=10)
        left_out = next(item for item in after.asked(request).candidates if item not in after.asked(request).chosen)
        assert client.explain(left_out, request).rules == Rules((("group", 1),))


def test_a_feature_that_a_new_version_adds(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "_REREAD", -1.0)
    server = FakeServer(schema, MOVIES)
    with server.client(timeout=30) as client:
        client.retrieve()
        features = (*schema.item_features, Feature("price", "number", filter=True))
        server.replace(
            [{**item, "price": 2.5} for item in MOVIES], schema=dataclasses.replace(schema, item_features=features)
        )
        assert client.explain(3, Request(filter=F.price > 3)).failing == (F.price > 3,)


def test_an_artifact_that_does_not_know_item_in(schema: Schema) -> None:
    server = FakeServer(schema, MOVIES, contract=Contract(opcodes=frozenset(range(1, 8))))
    with server.client(timeout=30) as client, pytest.raises(Unsupported, match="does not know ITEMS"):
        client.explain(3, Request())
    assert server.calls == []


class Rounded(Clustered):
    """Scores of items alone are a little more than beside others, as of a reranker's products."""

    def retrieve(self, inputs: Any) -> Any:
        outputs = super().retrieve(inputs)
        outputs["scores"][outputs["stats"][:, 1] == 1] *= 1 + 2e-7
        return outputs


def test_rounding_makes_no_reason(schema: Schema) -> None:
    network = Rounded(Random(3))
    request = Request(query=[1.0], k=9)
    chosen = network.asked(request, probes=CLUSTERS, candidates=MOST).chosen
    with ClusteredServer(network).client(timeout=30) as client:
        request = dataclasses.replace(request, probes=CLUSTERS, candidates=MOST, k=5)
        for k in range(1, 10):
            explanation = client.explain(chosen[k], dataclasses.replace(request, k=k))
            assert explanation.outcome == "outranked"
            assert explanation.gap == pytest.approx(network.score[chosen[k - 1]] - network.score[chosen[k]], abs=1e-5)
