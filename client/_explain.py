"""How an explanation is found: by asking the server what would be if something were otherwise. No IO here.

What decides, in this order:

    unknown_item     a request that lets only the item pass, and excludes nothing, returns nothing
    excluded         the request says so
    filtered         the leaves of the filter, each asked for with "and it is this item", put together again; whether
                     the item is one of given ids needs no asking
    outranked        the k-th of the results comes before the item by its own score, which that request gave
    diversity        it is left out too where only it and the k results may pass
    not_probed       with all clusters it is among the k results
    not_a_candidate  else

An item that is neither outranked nor left out by a rule would have been returned if it had been a candidate. With all
clusters the candidates are the best of more items: what is a candidate then would have been one before, if its cluster
had been read.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from client._codec import Codec
from client._explanation import Explanation, Outcome
from client._models import Request, Retrieval
from client._values import item_ids
from client._work import Retrieving
from client.contract import Contract, Rules
from client.errors import RequestError
from client.filters.conditions import AllOf, And, AnyOf, Condition, ItemIn, Not, Or
from client.schema import Schema

R = TypeVar("R")
Asking = Generator[list[Request], list[Retrieval], R]
"""Yields requests, is sent their results, and returns what they say."""

_ROUNDING = 1e-6  # of a final score, relative


def explaining(
    item_id: int, request: Request, codec: Codec, most: int
) -> Generator[Retrieving, list[Retrieval | RequestError], Explanation]:
    """Yields batches of at most `most` requests, is sent their results, and returns what they say of the item.

    Raises the `RequestError` of a wrong request.
    """
    needed = request
    try:
        k = codec.check(request).k
        needed = replace(request, filter=ItemIn((item_id,)))
        codec.check(needed)
    except RequestError:
        yield Retrieving([needed])  # the schema is out of date, perhaps, and read again
        raise
    asking = _explaining(item_id, request, k, codec.schema, codec.contract, most)
    try:
        requests = next(asking)
        while True:
            results: list[Retrieval] = []
            while len(results) < len(requests):
                for result in (yield Retrieving(requests[len(results) : len(results) + most])):
                    if isinstance(result, RequestError):
                        raise result
                    results.append(result)
            requests = asking.send(results)
    except StopIteration as end:
        explanation: Explanation = end.value
        return explanation


def _explaining(
    item_id: int, request: Request, k: int, schema: Schema, contract: Contract, most: int
) -> Asking[Explanation]:
    only = ItemIn((item_id,))
    as_asked = replace(request, k=None)
    alone = replace(as_asked, filter=only, exclude=None, probes=None, candidates=None)
    condition = And(()) if request.filter is None else _in_pieces(request.filter, contract.max_filter_words)
    holds: dict[Condition, bool] = {}
    leaves = []
    for leaf in dict.fromkeys(_leaves(condition)):
        if isinstance(leaf, ItemIn):
            holds[leaf] = item_id in leaf.item_ids
        else:
            leaves.append(leaf)
    tests = [replace(alone, filter=And((leaf, only))) for leaf in leaves]
    at_once = tests if len(tests) + 2 <= most else []
    asked, own, *passed = yield [as_asked, alone, *at_once]
    excluded = request.exclude is not None and item_id in item_ids("exclude", request.exclude).tolist()
    if own.count == 0:
        return Explanation(item_id, "unknown_item", ("unknown_item", *(("excluded",) if excluded else ())), k)
    item = _Item(item_id, as_asked, k, own.scores[0].tolist(), schema, contract.rules)
    if item.is_found(asked):
        return item.explained("returned", asked, as_asked)
    if tests and not at_once:
        passed = yield tests
    holds |= {leaf: result.count > 0 for leaf, result in zip(leaves, passed, strict=True)}
    reasons: list[Outcome] = ["excluded"] if excluded else []
    failing: tuple[Condition, ...] = ()
    if not _passes(condition, holds):
        reasons.append("filtered")
        failing = _separate(_deciding(condition, holds))
    if item.is_outranked(asked):
        reasons.append("outranked")
    if reasons:
        return replace(item.explained(reasons[0], asked, as_asked), reasons=tuple(reasons), failing=failing)
    return (yield from _missed(item, asked, as_asked))


def _missed(item: _Item, asked: Retrieval, request: Request) -> Asking[Explanation]:
    """Of an item that may be returned and whose score is enough."""
    schema = item.schema
    every = replace(request, probes=schema.clusters)
    again = [] if asked.stats.exact else [every]
    if request.candidates != schema.max_candidates:
        again.append(replace(every, candidates=schema.max_candidates))
    if (yield from _ruled_out(item, asked, request)):
        return item.explained("diversity", asked, request, sure=_all_are_candidates(asked, request))
    result, searched = asked, request
    results = (yield again) if again else []
    for result, searched in zip(results, again, strict=True):
        if item.is_found(result):
            return item.explained("not_probed" if searched is every else "not_a_candidate", result, searched)
        if item.is_outranked(result):
            return item.explained("outranked", result, searched)
        if (yield from _ruled_out(item, result, searched)):
            return item.explained("diversity", result, searched, sure=_all_are_candidates(result, searched))
    return item.explained("outranked" if item.is_close(result) else "not_a_candidate", result, searched)


def _ruled_out(item: _Item, result: Retrieval, request: Request) -> Asking[bool]:
    """Whether the rules leave the item out, though it may be a candidate beside the results of the request."""
    if item.rules is None:
        return False
    if _all_are_candidates(result, request):
        return True
    beside = result.item_ids[: min(item.k, item.schema.max_candidates - 1)].tolist()
    only = ItemIn((*beside, item.item_id))
    limited = replace(request, filter=only, exclude=None, probes=None, candidates=len(beside) + 1)
    (chosen,) = yield [limited]
    return not item.is_found(chosen)


def _all_are_candidates(result: Retrieval, request: Request) -> bool:
    return request.candidates is not None and result.stats.rows_passing <= request.candidates


@dataclass(frozen=True, slots=True)
class _Item:
    """What is known of the item: its own final score."""

    item_id: int
    asked: Request
    k: int
    score: float
    schema: Schema
    rules: Rules | None

    @property
    def spread(self) -> bool:
        """Whether results come in another order than that of their scores."""
        return self.rules is not None and self.rules.mmr < 1

    def position(self, result: Retrieval) -> int | None:
        """From 1."""
        ids = result.item_ids.tolist()
        return ids.index(self.item_id) + 1 if self.item_id in ids else None

    def is_found(self, result: Retrieval) -> bool:
        position = self.position(result)
        return position is not None and position <= self.k

    def is_after(self, score: float, item_id: int) -> bool:
        """Whether results come in this order: by score, then by smaller id; a score that is NaN comes last."""
        own, other = _ordered(self.score), _ordered(score)
        return other > own or (other == own and item_id < self.item_id)

    def is_outranked(self, result: Retrieval) -> bool:
        if self.spread:
            position = self.position(result)
            return position is not None and position > self.k
        return result.count >= self.k and self.is_after(
            result.scores[self.k - 1].tolist(), result.item_ids[self.k - 1].tolist()
        )

    def is_close(self, result: Retrieval) -> bool:
        """Whether only rounding parts it from the k-th: a reranker's scores may vary with the size of a batch."""
        if self.spread or result.count < self.k:
            return False
        return math.isclose(self.score, result.scores[self.k - 1].tolist(), rel_tol=_ROUNDING)

    def explained(self, outcome: Outcome, result: Retrieval, request: Request, *, sure: bool = False) -> Explanation:
        """By the result of a request; `sure`: that the item was a candidate."""
        by_elimination = outcome in ("diversity", "not_probed", "not_a_candidate")
        return Explanation(
            self.item_id,
            outcome,
            () if outcome == "returned" else (outcome,),
            self.k,
            self.score,
            self.position(result),
            None if self.spread or result.count < self.k else result.scores[self.k - 1].tolist(),
            probes=None if request.probes == self.asked.probes else request.probes,
            candidates=None if request.candidates == self.asked.candidates else request.candidates,
            rules=self.rules,
            certain=sure or not (self.spread and by_elimination),
        )


def _ordered(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _in_pieces(condition: Condition, words: int) -> Condition:
    """The same condition of leaves that fit into a program of so many words with the item beside them."""
    most = max(1, (words - 6) // 4)  # a value of a number takes four

    def cut(values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        return (values[start : start + most] for start in range(0, len(values), most))

    match condition:
        case And(operands=operands) | Or(operands=operands):
            return replace(condition, operands=tuple(_in_pieces(operand, words) for operand in operands))
        case Not(operand=operand):
            return Not(_in_pieces(operand, words))
        case AnyOf(values=values) if len(values) > most:
            return Or(tuple(replace(condition, values=part) for part in cut(values)))
        case AllOf(values=values) if len(values) > most:
            return And(tuple(replace(condition, values=part) for part in cut(values)))
    return condition


def _operands(condition: Condition) -> tuple[Condition, ...]:
    match condition:
        case And(operands=operands) | Or(operands=operands):
            return operands
        case Not(operand=operand):
            return (operand,)
    return ()


def _leaves(condition: Condition) -> Iterator[Condition]:
    """What holds of an item by itself: by its values, or by its id."""
    if not isinstance(condition, And | Or | Not):
        yield condition
    for operand in _operands(condition):
        yield from _leaves(operand)


def _passes(condition: Condition, holds: Mapping[Condition, bool]) -> bool:
    """Whether the item satisfies a condition; `holds`: whether it does each leaf."""
    match condition:
        case And(operands=operands):
            return all(_passes(operand, holds) for operand in operands)
        case Or(operands=operands):
            return any(_passes(operand, holds) for operand in operands)
        case Not(operand=operand):
            return not _passes(operand, holds)
    return holds[condition]


def _deciding(condition: Condition, holds: Mapping[Condition, bool]) -> Condition:
    """The least of a condition that makes it hold or fail: what it would take to have it the other way round.

    Of an AND that fails the operands that fail, of an OR that holds those that hold; else all of them, likewise.
    """
    operands = _operands(condition)
    if not operands:
        return condition
    if isinstance(condition, Not):
        return ~_deciding(condition.operand, holds)
    value, one_decides = _passes(condition, holds), isinstance(condition, Or)
    if value == one_decides:
        operands = tuple(operand for operand in operands if _passes(operand, holds) == value)
    first, *others = (_deciding(operand, holds) for operand in operands)
    for other in others:
        first = first | other if one_decides else first & other
    return first


def _separate(condition: Condition) -> tuple[Condition, ...]:
    return condition.operands if isinstance(condition, And) else (condition,)
