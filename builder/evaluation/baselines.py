"""The usual baselines, so that a figure can be judged: popularity, neighbours of items, iALS and EASE.

Letters: U users that train, Q users that ask, N items. Histories and interactions are scipy CSR matrices of float32
ones, a row a user; answers are positions in the catalogue `[Q, k]`, -1 where there are no more. What a user already has
is never an answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.data.lists import Lists
from builder.evaluation.metrics import quality

USERS_AT_ONCE = 512
EASE_MOST_ITEMS = 20_000  # a dense matrix of items x items: 1.6 GB of float32, inverted in minutes on two cores
Answer = Callable[[Any, int], NDArray[np.int64]]
"""Histories [Q, N], k -> answers [Q, k]."""


@dataclass(frozen=True)
class Baseline:
    """`fit`: interactions [U, N] and one of `settings` -> how to answer. `most_items`: of a catalogue it is fit for."""

    name: str
    fit: Callable[..., Answer]
    settings: tuple[dict[str, Any], ...] = ({},)
    most_items: int | None = None


@dataclass(frozen=True)
class Fitted:
    """The setting of a baseline that answered the validation users best, and how it answers."""

    answer: Answer
    setting: dict[str, Any]


def matrix(lists: Lists, items: int) -> Any:
    """Lists of positions as CSR [len(lists), items]."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(lists.values), dtype=np.float32)
    return csr_matrix((ones, lists.values.astype(np.int32), lists.offsets), shape=(len(lists), items))


def fit_best(baseline: Baseline, interactions: Any, histories: Any, targets: Lists, k: int) -> Fitted:
    """Fit every setting and keep the one of best NDCG at k, over users with `histories` [Q, N] and `targets`."""

    def measured() -> Iterator[tuple[float, Fitted]]:
        for setting in baseline.settings:
            answer = baseline.fit(interactions, **setting)
            alone = len(baseline.settings) == 1
            yield 0.0 if alone else quality(answer(histories, k), targets).ndcg, Fitted(answer, setting)

    return max(measured(), key=lambda pair: pair[0])[1]


def popularity(interactions: Any) -> Answer:
    """The items with most interactions; ties go to the one that comes first in the catalogue."""
    order = np.argsort(-np.asarray(interactions.sum(0)).ravel(), kind="stable")
    scores = np.empty(len(order), dtype=np.float32)
    scores[order] = np.arange(len(order), 0, -1)  # places, so that none are equal

    def answer(histories: Any, k: int) -> NDArray[np.int64]:
        return _best(histories, k, lambda part: np.tile(scores, (part.shape[0], 1)))

    return answer


def item_knn(interactions: Any, *, neighbours: int) -> Answer:
    """Sum of the cosine similarities to what the user has, over the nearest neighbours of each item (Sarwar et al., WWW
    2001), as in the library `implicit`."""
    from implicit.nearest_neighbours import CosineRecommender
    from implicit.utils import ParameterWarning

    model = CosineRecommender(K=neighbours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)  # of a conversion that it makes by itself
        model.fit(interactions, show_progress=False)
    return _of_implicit(model)


def ials(interactions: Any, *, factors: int, regularization: float, alpha: float) -> Answer:
    """Implicit alternating least squares (Hu, Koren, Volinsky, ICDM 2008), users folded in from their histories, as in
    the library `implicit`."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # it runs threads of its own
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=15, random_state=0
        )
        model.fit(interactions, show_progress=False)
    return _of_implicit(model, recalculate_user=True)


def ease(interactions: Any, *, regularization: float) -> Answer:
    """EASE: the linear autoencoder with a zero diagonal in closed form (Steck, WWW 2019)."""
    gram = np.asarray((interactions.T @ interactions).todense(), dtype=np.float32)
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)

    def answer(histories: Any, k: int) -> NDArray[np.int64]:
        return _best(histories, k, lambda part: np.asarray(part @ weights))

    return answer


BASELINES = (
    Baseline("popularity", popularity),
    Baseline("item-kNN", item_knn, tuple({"neighbours": count} for count in (20, 50, 100, 200, 500))),
    Baseline(
        "iALS",
        ials,
        tuple({"factors": 64, "regularization": r, "alpha": a} for r in (0.01, 0.1, 1.0, 10.0) for a in (1.0, 10.0)),
    ),
    Baseline(
        "EASE",
        ease,
        tuple({"regularization": r} for r in (5.0, 20.0, 50.0, 100.0, 300.0, 1000.0)),
        EASE_MOST_ITEMS,
    ),
)


def _of_implicit(model: Any, **more: Any) -> Answer:
    def answer(histories: Any, k: int) -> NDArray[np.int64]:
        users = np.arange(histories.shape[0])
        found, scores = model.recommend(users, histories, N=k, filter_already_liked_items=True, **more)
        # Past the end of what it has, the library repeats items with the lowest float or names items of score 0.
        return np.where(scores > np.finfo(np.float32).min, found, -1).astype(np.int64)

    return answer


def _best(histories: Any, k: int, score: Callable[[Any], NDArray[np.float32]]) -> NDArray[np.int64]:
    """The k best by `score` of what is not in `histories` [Q, N], a part of the users at a time."""
    found = np.full((histories.shape[0], k), -1, dtype=np.int64)
    for start in range(0, histories.shape[0], USERS_AT_ONCE):
        part = histories[start : start + USERS_AT_ONCE]
        scores = np.array(score(part), dtype=np.float32)
        scores[part.nonzero()] = -np.inf
        width = min(k, scores.shape[1])
        best = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        known = np.take_along_axis(scores, best, axis=1) > -np.inf
        found[start : start + len(best), :width] = np.where(known, best, -1)
    return found
