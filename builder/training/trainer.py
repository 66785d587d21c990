"""The training loop: steps, validation after each epoch, early stopping, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from builder import progress
from builder.config import Training
from builder.data.dataset import Dataset
from builder.data.splits import HeldOut
from builder.errors import BuilderError
from builder.evaluation.exact import exact_search
from builder.evaluation.metrics import Quality, quality
from builder.network.towers import ItemTower, UserTower
from builder.training.batches import Batches, wire_features
from builder.training.distributed import Group
from builder.training.forward import TrainingLoss, precision, prepared, with_dense_gradients
from builder.training.logging import RunLog
from builder.training.loss import expected_counts

AT = 20  # recall and NDCG are measured among the first 20 results
HIDE = 0.1  # of each input, by its own lot
HIDE_ALL = 0.02  # of examples: all inputs of the user
CHECKPOINT_S = 300.0
LOG_STEPS = 20  # between losses that are logged


@dataclass
class Progress:
    """How far a run is. `generator`: state of the random numbers of the epoch that is under way."""

    epoch: int = 0
    position: int = 0  # examples of this epoch that are done
    loss_sum: float = 0.0
    best_epoch: int = 0
    best_recall: float = -1.0
    seconds: float = 0.0
    generator: Tensor | None = None
    log: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains two towers on a dataset, alone or as one process of a `group`, which all have the same towers.

    `on_checkpoint` is called with the whole state after every epoch and every 5 minutes, `on_best` with the state of
    the towers when validation recall is the best so far; in a group only in the first process. `log` gets the loss of
    every 20th step and the figures of every epoch. With the same batch a group learns what one process learns, but for
    rounding and dropout, which each process draws for its own users; large tables, which one process updates lazily
    (SparseAdam), are updated whole.
    """

    def __init__(
        self,
        user_tower: UserTower,
        item_tower: ItemTower,
        dataset: Dataset,
        settings: Training,
        group: Group,
        *,
        log: RunLog,
        on_checkpoint: Callable[[dict[str, Any]], None],
        on_best: Callable[[dict[str, Any]], None],
    ) -> None:
        self.towers = nn.ModuleDict({"user": user_tower, "item": item_tower}).to(group.device)
        self.user_tower, self.item_tower = user_tower, item_tower
        self.dataset, self.settings, self.group, self.device = dataset, settings, group, group.device
        self.state = Progress()
        self._log, self._on_checkpoint, self._on_best = log, on_checkpoint, on_best
        self._batches = Batches(
            dataset.train, dataset.user_columns, history=user_tower.history_length, hide=HIDE, hide_all=HIDE_ALL
        )
        popularity = np.bincount(dataset.train.items, minlength=len(dataset.catalogue)) / len(dataset.train)
        expected = expected_counts(torch.from_numpy(popularity).float(), settings.batch, settings.negatives)
        if group.size > 1:
            with_dense_gradients(self.towers)
        self._plain_loss = TrainingLoss(user_tower, item_tower, expected.log(), settings.temperature)
        self._loss = prepared(self._plain_loss, settings, group)
        self._precision = precision(settings, self.device)
        self._optimizers = _optimizers(self.towers, settings.learning_rate)

    def fit(self) -> None:
        """Train until validation recall has not risen for `patience` epochs, or `epochs` are done.

        Towers that know something before they are trained are epoch 0, which training has to beat.
        """
        if self.settings.start == "spectral" and not self.state.log:
            self._measure_start()
        while not self.finished:
            self._epoch()
        self._loss = self._plain_loss  # what is wrapped for a group would keep its connections open beyond its end

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        since_best = self.state.epoch - self.state.best_epoch
        return self.state.epoch >= self.settings.epochs or since_best >= self.settings.patience

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if there had been no interruption."""
        return {
            "towers": self.towers.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": asdict(self.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises BuilderError for the state of several processes with large tables in one process, and vice versa."""
        if len(state["optimizers"]) != len(self._optimizers):
            raise BuilderError(
                f"the checkpoint has {len(state['optimizers'])} optimizers, expected {len(self._optimizers)}: one "
                "process updates large tables another way than several do",
                remedy="Go on with one process if it began with one, else with several.",
            )
        self.towers.load_state_dict(state["towers"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.state = Progress(**state["progress"])

    def _measure_start(self) -> None:
        started = time.monotonic()
        with progress.step("Measuring the start") as current:
            validation = self._validate()
            current.note(f"validation recall@{AT} {validation.recall:.4f}")
        self.state.seconds += time.monotonic() - started
        figures = {"recall": validation.recall, "ndcg": validation.ndcg, "seconds": self.state.seconds}
        self.state.log.append({"epoch": 0, **figures})
        self._log.write("towers", 0, {f"epoch/{name}": value for name, value in figures.items()})
        self.state.best_recall = validation.recall
        if self.group.first:
            self._on_best(self.towers.state_dict())
        self._checkpoint()

    def _epoch(self) -> None:
        state, settings = self.state, self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.epoch)
        order = torch.randperm(len(self._batches), generator=generator)
        if state.generator is not None:
            generator.set_state(state.generator.cpu())
        self.towers.train()
        steps = -(-len(order) // settings.batch)  # an epoch
        started = saved = time.monotonic()
        with progress.step(f"Epoch {state.epoch + 1}", len(order)) as bar:
            bar.advance(state.position)
            while state.position < len(order):
                rows = order[state.position : state.position + settings.batch]
                loss = self._step(rows, generator)
                state.loss_sum += loss * len(rows)
                state.position += len(rows)
                step = state.epoch * steps + -(-state.position // settings.batch)
                if step % LOG_STEPS == 0:
                    self._log.write("towers", step, {"loss": loss})
                bar.advance(len(rows))
                bar.note(f"loss {state.loss_sum / state.position:.3f}")
                if time.monotonic() - saved >= CHECKPOINT_S:
                    saved = time.monotonic()
                    state.generator = generator.get_state()
                    self._checkpoint()
            loss = state.loss_sum / state.position
            validation = self._validate()
            bar.note(f"loss {loss:.3f}  validation recall@{AT} {validation.recall:.4f}")
        state.epoch += 1
        state.seconds += time.monotonic() - started
        state.position, state.loss_sum, state.generator = 0, 0.0, None
        figures = {"loss": loss, "recall": validation.recall, "ndcg": validation.ndcg, "seconds": state.seconds}
        state.log.append({"epoch": state.epoch, **figures})
        self._log.write("towers", state.epoch * steps, {f"epoch/{name}": value for name, value in figures.items()})
        # Without validation users nothing tells epochs apart: all are trained and the last one is kept.
        if validation.recall > state.best_recall or not len(self.dataset.validation):
            state.best_recall, state.best_epoch = validation.recall, state.epoch
            if self.group.first:
                self._on_best(self.towers.state_dict())
        self._checkpoint()

    def _checkpoint(self) -> None:
        if self.group.first:
            self._log.flush()
            self._on_checkpoint(self.state_dict())

    def _step(self, rows: Tensor, generator: torch.Generator) -> float:
        """One update by the interactions at `rows [B]`, of which this process has its share; returns their loss."""
        share = self.group.share(len(rows))
        batch = self._batches.at(rows, generator, share).to(self.device)
        drawn = torch.randint(len(self.item_tower), (self.settings.negatives,), generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.manual_seed(seed + self.group.rank)  # of dropout, which takes no generator
        positions = torch.cat([batch.items, drawn.to(self.device)])
        with self._precision:
            loss = self._loss(
                batch.features, batch.history, batch.offsets, batch.labels, positions, share.start, len(rows)
            )
        (value,) = self.group.sums(float(loss.detach()))
        if not np.isfinite(value):
            raise BuilderError(
                f"the loss is {value}", where=f"epoch {self.state.epoch + 1}", remedy="Lower training.learning_rate."
            )
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        (loss * self.group.size).backward()  # of which the mean over the processes is taken
        for optimizer in self._optimizers:
            optimizer.step()
        return value

    def _validate(self) -> Quality:
        """Recall and NDCG of the validation users, each measured by one of the processes."""
        validation, group = self.dataset.validation, self.group
        mine = validation if group.size == 1 else validation.take(np.arange(group.rank, len(validation), group.size))
        found, count = self.measure(mine), int((mine.targets.lengths > 0).sum())
        if group.size == 1:
            return found
        recall, ndcg, users = group.sums(found.recall * count, found.ndcg * count, count)
        return Quality(recall / max(users, 1), ndcg / max(users, 1))

    @torch.no_grad()
    def measure(self, held_out: HeldOut) -> Quality:
        """Recall and NDCG at 20, over all items but those seen."""
        self.towers.eval()
        queries = encode_users(self.user_tower, self.dataset, held_out, self.device)
        found, _ = exact_search(queries, self.item_tower.vectors(), AT, exclude=held_out.seen, device=self.device)
        self.towers.train()
        return quality(found, held_out.targets)


@torch.no_grad()
def encode_users(
    tower: UserTower, dataset: Dataset, held_out: HeldOut, device: torch.device, chunk: int = 1024
) -> Tensor:
    """Query vectors `[H, D] float32` on the CPU, through the served forward pass."""
    queries = []
    for start in range(0, len(held_out), chunk):
        rows = np.arange(start, min(start + chunk, len(held_out)))
        positions = held_out.history.take(rows).padded(max(1, tower.history_length))
        history = np.where(positions >= 0, dataset.catalogue.ids[positions], -1)
        features = wire_features(dataset.user_columns, held_out.users[rows])
        queries.append(
            tower.query(
                [torch.from_numpy(feature).to(device) for feature in features],
                torch.from_numpy(history).to(device),
            ).cpu()
        )
    return torch.cat(queries) if queries else torch.empty(0, tower.project.out_features)


def _optimizers(module: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Adam for dense gradients, its lazy variant for the rows of large tables."""
    sparse = [table.weight for table in module.modules() if isinstance(table, nn.Embedding) and table.sparse]
    large = {id(weight) for weight in sparse}
    dense = [parameter for parameter in module.parameters() if id(parameter) not in large]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense, lr=learning_rate, fused=True)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=learning_rate))
    return optimizers
