"""Training of the reranker, on what it will see when it is served: the candidates that the index returns.

Its positives are held-out interactions that the towers were not trained on. Towers know their own positives by heart; a
reranker that learnt from those would learn to trust the score of the search more than it may.
"""

from __future__ import annotations

import copy
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from builder import ops, progress
from builder.config import Rerank
from builder.data.catalogue import Catalogue
from builder.data.lists import Lists
from builder.data.splits import HeldOut
from builder.data.vectors import VectorSource
from builder.errors import BuilderError
from builder.evaluation.metrics import Quality, quality
from builder.index.build import build_index
from builder.index.kmeans import automatic_clusters
from builder.network.rerank import Reranker
from builder.network.search import Search
from builder.training.checkpoint import restore, save
from builder.training.logging import RunLog

AT = 20
USERS_A_STEP = 32
USERS_A_SEARCH = 64
FEWEST_USERS = 20  # with a target among their candidates, to learn from and to measure on
MEASURED_SHARE = 0.2  # of the users: they choose the epoch and the calibration, and train nothing


@dataclass(frozen=True)
class Candidates:
    """What the index returns for Q users: `queries [Q, D]`; `history [Q, L]` and `items [Q, M]` positions in the
    catalogue, -1 for none, the latter best first; `scores [Q, M]`; `labels [Q, M, T]`: for which tasks each is a
    held-out positive."""

    queries: Tensor
    history: Tensor
    items: Tensor
    scores: Tensor
    labels: Tensor

    def take(self, chosen: Tensor) -> Candidates:
        """The users at `chosen [n]`."""
        return Candidates(
            self.queries[chosen], self.history[chosen], self.items[chosen], self.scores[chosen], self.labels[chosen]
        )


class Miner:
    """Searches an index of the item vectors as a served artifact would, all it has seen excluded for each user.

    `vectors` [N, D] in catalogue order.
    """

    def __init__(self, catalogue: Catalogue, vectors: VectorSource, count: int, *, seed: int) -> None:
        ops.load()
        self._catalogue = catalogue
        self._count = min(count, len(catalogue))
        index = build_index(vectors, catalogue.ids, (), clusters=automatic_clusters(len(catalogue)), seed=seed)
        self._search = Search(index, fingerprint=0, candidates=self._count, max_candidates=self._count).eval()

    @torch.no_grad()
    def candidates(self, queries: Tensor, held_out: HeldOut, history: int) -> Candidates:
        """Of `held_out`, whose users have the query vectors `queries [Q, D] float32`; `history`: the longest served."""
        items, scores = [], []
        exclude = torch.from_numpy(_padded_ids(held_out.seen, self._catalogue.ids))
        for start in range(0, len(queries), USERS_A_SEARCH):
            query, excluded = (part[start : start + USERS_A_SEARCH].contiguous() for part in (queries, exclude))
            rows = len(query)
            nothing = torch.zeros(rows, 2, dtype=torch.int64)
            limits = torch.zeros(rows, 2, dtype=torch.int32)
            _, ids, found, _, _ = self._search(query, nothing, excluded, limits, torch.zeros(rows, dtype=torch.int32))
            padding = self._count - ids.shape[1]
            items.append(torch.from_numpy(self._catalogue.find(F.pad(ids, (0, padding), value=-1).numpy())))
            scores.append(F.pad(found, (0, padding), value=-math.inf))
        if not items:
            raise ValueError("no users")
        found_items = torch.cat(items)
        labels = _labels(found_items.numpy(), held_out)
        histories = torch.from_numpy(held_out.history.padded(max(1, history)).astype(np.int64))
        return Candidates(queries, histories, found_items, torch.cat(scores), torch.from_numpy(labels))


def train_reranker(
    reranker: Reranker,
    candidates: Candidates,
    held_out: HeldOut,
    vectors: VectorSource,
    settings: Rerank,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    log: RunLog | None = None,
) -> dict[str, float]:
    """Train on most users of `held_out` and keep the epoch that orders the candidates of the others best.

    `candidates` are those of `held_out`. If no epoch is better than the order of the search, that order stays. Then the
    tasks are calibrated on the others. `checkpoint`: a file that keeps the state after every epoch; training goes on
    from there, with the same result, if the file is of the same candidates and settings, and else begins anew. `log`
    gets the figures of every epoch. Returns figures. Raises BuilderError if too few users have a target among their
    candidates.
    """
    log = RunLog(None) if log is None else log
    usable = candidates.labels.any(2).any(1).nonzero().squeeze(1)
    if len(usable) < FEWEST_USERS:
        raise BuilderError(
            f"the reranker has {len(usable)} validation users with a target among their candidates to learn from, "
            f"expected at least {FEWEST_USERS}",
            where="rerank",
            remedy="Give more data, raise rerank.candidates, or leave rerank out.",
        )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(candidates.items), generator=generator)
    measured = shuffled[: max(1, round(MEASURED_SHARE * len(shuffled)))].sort().values
    is_measured = torch.zeros(len(shuffled), dtype=torch.bool).index_fill_(0, measured, True)
    training = candidates.take(usable[~is_measured[usable]])
    checking, checked = candidates.take(measured), held_out.take(measured.numpy())
    _begin_with_scores(reranker, training)
    reranker.to(device)
    optimizer = torch.optim.Adam(reranker.parameters(), lr=settings.learning_rate)
    before = best = rerank_quality(reranker, checking, checked.targets, vectors, device)
    best_state, best_epoch, epoch = copy.deepcopy(reranker.state_dict()), 0, 0
    fingerprint = 0 if checkpoint is None else _fingerprint(reranker, candidates, settings, seed)
    saved = _saved(checkpoint, fingerprint)
    if saved is not None:
        best_state = {**best_state, **saved["best_state"]}
        reranker.load_state_dict({**best_state, **saved["reranker"]})
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        epoch, best_epoch, best = saved["epoch"], saved["best_epoch"], Quality(*saved["best"])
    else:
        log.write("reranker", 0, {"recall": before.recall, "ndcg": before.ndcg})
    while epoch < settings.epochs and epoch - best_epoch < settings.patience:
        with progress.step(f"Reranker, epoch {epoch + 1}", len(training.items)) as bar:
            loss = _epoch(reranker, training, vectors, optimizer, generator, device, bar)
            epoch += 1
            reached = rerank_quality(reranker, checking, checked.targets, vectors, device)
            bar.note(f"loss {loss:.3f}  validation NDCG@{AT} {reached.ndcg:.4f} (of the search: {before.ndcg:.4f})")
        log.write("reranker", epoch, {"loss": loss, "recall": reached.recall, "ndcg": reached.ndcg})
        if reached.ndcg > best.ndcg:
            best, best_epoch, best_state = reached, epoch, copy.deepcopy(reranker.state_dict())
        if checkpoint is not None:
            log.flush()
            state = {
                "fingerprint": fingerprint,
                "reranker": _learned(reranker.state_dict()),
                "best_state": _learned(best_state),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch,
                "best_epoch": best_epoch,
                "best": [best.recall, best.ndcg],
            }
            save(state, checkpoint)
    reranker.load_state_dict(best_state)
    _calibrate(reranker, checking, vectors, device)
    reranker.to("cpu").eval()
    return {
        "rerank_best_epoch": float(best_epoch),
        f"rerank_validation_ndcg_at_{AT}": best.ndcg,
        f"rerank_validation_ndcg_at_{AT}_before": before.ndcg,
    }


def rerank_quality(
    reranker: Reranker, candidates: Candidates, targets: Lists, vectors: VectorSource, device: torch.device
) -> Quality:
    """Recall and NDCG at 20 of the order by the sum of the tasks' probabilities."""
    value = probabilities(reranker, candidates, vectors, device).sum(2)
    return quality(best_items(candidates.items, value, AT), targets)


def best_items(items: Tensor, value: Tensor, k: int) -> NDArray[np.int64]:
    """`items [Q, M]` (-1 none) by `value [Q, M]` descending -> the first k, `[Q, k]`, -1 past the end."""
    value = torch.where(items < 0, -math.inf, value)
    order = value.argsort(dim=1, descending=True, stable=True)[:, :k]
    found = items.gather(1, order)
    return F.pad(found, (0, k - found.shape[1]), value=-1).numpy()


def probabilities(
    reranker: Reranker, candidates: Candidates, vectors: VectorSource, device: torch.device | str = "cpu"
) -> Tensor:
    """Of each task for each candidate: `[Q, M, T]` on the CPU; of what is no candidate, anything."""
    return torch.sigmoid(_all_logits(reranker, candidates, vectors, device))


def _saved(checkpoint: Path | None, fingerprint: int) -> dict[str, Any] | None:
    """What is kept in `checkpoint`, unless it is of something else."""
    if checkpoint is None or not checkpoint.exists():
        return None
    state = restore(checkpoint, torch.device("cpu"))
    return state if state.get("fingerprint") == fingerprint else None


def _fingerprint(reranker: Reranker, candidates: Candidates, settings: Rerank, seed: int) -> int:
    """CRC-32 of what the training depends on, but for how long it goes on."""
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in reranker.state_dict().items()]
    words = [settings.model_dump_json(exclude={"epochs", "patience"}), str(seed), *shapes]
    checksum = zlib.crc32("\n".join(words).encode())
    for part in (candidates.queries, candidates.history, candidates.items, candidates.scores, candidates.labels):
        checksum = zlib.crc32(np.ascontiguousarray(part.numpy()).data, checksum)
    return checksum


def _learned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the graph of items, which is large and never changes."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("neighbours.")}


def _epoch(
    reranker: Reranker,
    training: Candidates,
    vectors: VectorSource,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    device: torch.device,
    bar: progress.Step,
) -> float:
    reranker.train()
    total, steps = 0.0, 0
    for rows in torch.randperm(len(training.items), generator=generator).split(USERS_A_STEP):
        part = training.take(rows)
        logits = _logits(reranker, part, vectors, device)
        loss = listwise_and_pointwise(logits, part.labels.to(device), (part.items >= 0).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total, steps = total + float(loss.detach()), steps + 1
        bar.advance(len(rows))
    return total / max(steps, 1)


def listwise_and_pointwise(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """The sum of a listwise and a pointwise loss, averaged over the positives and tasks: a scalar.

    The softmax over a user's candidates orders them; the logistic loss keeps logits in the scale of probabilities (as
    in JRC, Sheng et al. 2023, doi:10.1145/3580305.3599886). `logits`, `labels [B, M, T]`; `real [B, M]`: is one.
    """
    mask = real.unsqueeze(2)
    wanted = labels.to(logits.dtype) * mask
    positives = wanted.sum().clamp(min=1)
    listwise = logits.masked_fill(~mask, -math.inf).log_softmax(1).masked_fill(~mask, 0.0)
    pointwise = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * mask
    return (pointwise.sum() - (listwise * wanted).sum()) / positives


def _logits(reranker: Reranker, part: Candidates, vectors: VectorSource, device: torch.device | str) -> Tensor:
    """`[n, M, T]`."""
    scores = torch.where(part.items < 0, 0.0, part.scores)
    if reranker.scorer.reads_vectors:
        read = vectors[part.items.clamp(min=0).numpy().ravel()]
        gathered = torch.from_numpy(np.asarray(read, dtype=np.float32)).view(*part.items.shape, -1)
    else:
        gathered = torch.empty(*part.items.shape, 0)
    inputs = (part.queries, part.history, part.items, gathered, scores)
    logits: Tensor = reranker(*(tensor.to(device) for tensor in inputs))
    return logits


@torch.no_grad()
def _all_logits(
    reranker: Reranker, candidates: Candidates, vectors: VectorSource, device: torch.device | str
) -> Tensor:
    """`[Q, M, T]` on the CPU."""
    reranker.eval()
    parts = torch.arange(len(candidates.items)).split(USERS_A_STEP)
    return torch.cat([_logits(reranker, candidates.take(rows), vectors, device).cpu() for rows in parts])


def _calibrate(reranker: Reranker, checking: Candidates, vectors: VectorSource, device: torch.device) -> None:
    """Set temperature and bias of each task to those of the least logistic loss on candidates that trained nothing."""
    real = checking.items >= 0
    logits = _all_logits(reranker, checking, vectors, device)[real].double()  # [n, T]
    labels = checking.labels[real].double()
    slope, bias = _logistic_fit(logits, labels)
    calibration = reranker.scorer.calibration
    with torch.no_grad():
        calibration.temperature.copy_(1 / slope)
        calibration.bias.copy_(bias)


def _begin_with_scores(reranker: Reranker, training: Candidates) -> None:
    """Let the search's score alone give the likeliest probabilities.

    Of a task that no candidate is positive for, or every one, it gives the same to all: 1 / (n + 2) or 1 less that, of
    n candidates (Laplace's rule of succession).
    """
    real = training.items >= 0
    labels = training.labels[real].double()  # [n, T]
    slope, bias = _logistic_fit(training.scores[real].double().unsqueeze(1).expand(-1, labels.shape[1]), labels)
    alike = labels.min(0).values == labels.max(0).values
    slope = torch.where(alike, 0.0, slope)
    bias = torch.where(alike, math.log1p(len(labels)) * (2 * labels[0] - 1), bias)
    with torch.no_grad():
        reranker.scorer.retrieved.scale.copy_(slope)
        reranker.scorer.retrieved.bias.copy_(bias)


def _logistic_fit(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Slope (above 0) and bias `[T]` of the least logistic loss of `labels [n, T]` by `inputs [n, T]`, task by task.

    Of n positives each counts as (n + 1) / (n + 2) of one, and as little less of a negative (Platt 1999): where inputs
    tell labels apart without fault the slope would grow without bound. 1 and 0 for a task whose labels are all alike:
    nothing tells how sure it may be.
    """
    positives, negatives = labels.sum(0), (1 - labels).sum(0)
    smooth = torch.where(labels > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    mean, spread = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    standard = (inputs - mean) / spread
    log_slope = torch.zeros(inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    bias = torch.logit(smooth.mean(0)).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([log_slope, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(standard * log_slope.exp() + bias, smooth)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        slope = log_slope.exp() / spread
        offset = bias - slope * mean
        fits = (positives > 0) & (negatives > 0)
        return torch.where(fits, slope, 1.0), torch.where(fits, offset, 0.0)


def _labels(items: NDArray[np.int64], held_out: HeldOut) -> NDArray[np.bool_]:
    """[Q, M, T]: for which tasks each of `items` [Q, M] is a target."""
    width = 1 + max(int(items.max(initial=0)), int(held_out.targets.values.max(initial=0)))
    wanted = held_out.targets.owners * width + held_out.targets.values
    order = np.argsort(wanted)
    asked = np.arange(len(items))[:, None] * width + items
    at = np.searchsorted(wanted[order], asked).clip(max=max(len(wanted) - 1, 0))
    if not len(wanted):
        return np.zeros((*items.shape, held_out.labels.shape[1]), dtype=np.bool_)
    found = (wanted[order][at] == asked) & (items >= 0)
    return np.asarray(held_out.labels[order[at]] & found[:, :, None])


def _padded_ids(seen: Lists, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Item ids of lists of positions, [Q, longest], -1 for none."""
    positions = seen.padded(max(1, int(seen.lengths.max(initial=0))))
    return np.where(positions >= 0, ids[positions], -1)
