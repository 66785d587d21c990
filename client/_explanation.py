"""Why an item was or was not returned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from client.contract import Rules
from client.filters.conditions import Condition

Outcome = Literal[
    "returned",
    "unknown_item",
    "excluded",
    "filtered",
    "outranked",
    "diversity",
    "not_probed",
    "not_a_candidate",
]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item was or was not returned for a request. `str()` says it in words.

    `outcome`:
        returned          it is among the `k` results
        unknown_item      it is not in the snapshot
        excluded          the request excludes it
        filtered          it does not pass the filter: it fails each of `failing`
        outranked         its score is not enough for the `k` results
        diversity         the artifact's rules of diversity leave it out
        not_probed        the search did not read its cluster; reading all of them would return it
        not_a_candidate   the search read its cluster, or would with all of them, but did not choose it as a candidate
    `reasons`: all that keep it from the results, the first of them being the outcome; empty when it is returned. What
        the search would have made of an item is not looked into where it is excluded or filtered already.
    `failing`: the least parts of the filter that it fails, each by itself; it would pass if it passed all of them.
    `position`: its place among the results, from 1; also beyond `k` where the artifact's `max_results` let it be seen.
    `score`: its final score, None for an unknown item. `kth_score`: that of the last of the `k` results, None where
        there are fewer, and where they do not come in the order of scores. `gap`: how much is missing.
    `probes`, `candidates`: what was asked for, in place of the request's own, by the search that `position` and
        `kth_score` are of: all clusters, and the most candidates. None: nothing else than the request.
    `certain`: False where an outcome was found by elimination that another one could also explain, which only happens
        where the artifact's `rules` have maximal marginal relevance.
    `version`: of the model that answered, None from a transport that cannot tell.
    """

    item_id: int
    outcome: Outcome
    reasons: tuple[Outcome, ...]
    k: int
    score: float | None = None
    position: int | None = None
    kth_score: float | None = None
    failing: tuple[Condition, ...] = ()
    probes: int | None = None
    candidates: int | None = None
    rules: Rules | None = None
    certain: bool = True
    version: int | None = None

    @property
    def gap(self) -> float | None:
        """`kth_score` - `score` of an item that is outranked, at least 0; None for others and where either is NaN."""
        if "outranked" not in self.reasons or self.score is None or self.kth_score is None:
            return None
        if math.isnan(self.score) or math.isnan(self.kth_score):
            return None
        return 0.0 if self.kth_score == self.score else max(self.kth_score - self.score, 0.0)

    def __str__(self) -> str:
        item = f"Item {self.item_id}"
        if self.outcome == "returned":
            return f"{item} is returned: number {self.position} of {self.k} wanted, with a score of {self.score:.6g}."
        if self.outcome == "unknown_item":
            also = "; the request excludes it too" if "excluded" in self.reasons else ""
            return f"{item} is not in the snapshot that is served{also}."
        first, *others = [self._because(reason) for reason in self.reasons]
        text = f"{item} is not returned because {first}."
        for other in others:
            text += f" Besides, {other}."
        if not self.certain:
            text += " That was found by elimination: under maximal marginal relevance other reasons look the same."
        return text

    def _because(self, reason: Outcome) -> str:
        match reason:
            case "excluded":
                return "the request excludes it"
            case "filtered":
                return f"it does not pass the filter: it fails {' and '.join(map(_shortened, self.failing))}"
            case "outranked":
                return self._outranked()
            case "diversity":
                return (
                    f"the artifact's rules of diversity ({self.rules}) leave it out{self._searched()}: "
                    f"results before it take its place, and its score, {self.score:.6g}, does not count then"
                )
            case "not_probed":
                return (
                    "the search did not read its cluster; asked again with all clusters "
                    f"(probes={self.probes}), it is number {self.position} with a score of {self.score:.6g}"
                )
        found = (
            f"; asked again with {self._settings()}, it is number {self.position}"
            if self.position is not None
            else f", not even with {self._settings()}"
            if self._settings()
            else ""
        )
        return (
            "it was not among the candidates that the search chose for scoring, although its score, "
            f"{self.score:.6g}, would be enough{found}"
        )

    def _outranked(self) -> str:
        if self.kth_score is None:
            return f"the rules chose it as number {self.position}, and {self.k} were wanted{self._searched()}"
        place = "" if self.position is None else f"it is number {self.position}: "
        how = f"below that of result {self.k}, {self.kth_score:.6g}"
        if self.gap is not None:
            how += f", by {self.gap:.3g}"
        if self.gap == 0:
            how = f"no better than that of result {self.k}"
        return f"{place}its score, {self.score:.6g}, is {how}{self._searched()}"

    def _searched(self) -> str:
        settings = self._settings()
        return f" (the search as asked did not find it; this is how it is with {settings})" if settings else ""

    def _settings(self) -> str:
        settings = []
        if self.probes is not None:
            settings.append(f"all clusters (probes={self.probes})")
        if self.candidates is not None:
            settings.append(f"the most candidates (candidates={self.candidates})")
        return " and ".join(settings)


def _shortened(condition: Condition) -> str:
    text = str(condition)
    return text if len(text) <= 200 else f"{text[:197]}..."
