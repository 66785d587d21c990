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
from builder.training.batches import Batch, Batches, wire_features
from builder.training.loss import expected_counts, sampled_softmax

AT = 20  # recall and NDCG are measured among the first 20 results
HIDE = 0.1  # of each input, by its own lot
HIDE_ALL = 0.02  # of examples: all inputs of the user
CHECKPOINT_S = 300.0


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
    """Trains two towers on a dataset.

    `on_checkpoint` is called with the whole state after every epoch and every 5 minutes, `on_best` with the state of
    the towers when validation recall is the best so far.
    """

    def __init__(
        self,
        user_tower: UserTower,
        item_tower: ItemTower,
        dataset: Dataset,
        settings: Training,
        device: torch.device,
        *,
        on_checkpoint: Callable[[dict[str, Any]], None],
        on_best: Callable[[dict[str, Any]], None],
    ) -> None:
        self.towers = nn.ModuleDict({"user": user_tower, "item": item_tower}).to(device)
        self.user_tower, self.item_tower = user_tower, item_tower
        self.dataset, self.settings, self.device = dataset, settings, device
        self.state = Progress()
        self._on_checkpoint, self._on_best = on_checkpoint, on_best
        self._batches = Batches(
            dataset.train, dataset.user_columns, history=user_tower.history_length, hide=HIDE, hide_all=HIDE_ALL
        )
        popularity = np.bincount(dataset.train.items, minlength=len(dataset.catalogue)) / len(dataset.train)
        expected = expected_counts(torch.from_numpy(popularity).float(), settings.batch, settings.negatives)
        self._log_expected = expected.log().to(device)
        self._optimizers = _optimizers(self.towers, settings.learning_rate)

    def fit(self) -> None:
        """Train until validation recall has not risen for `patience` epochs, or `epochs` are done.

        Towers that know something before they are trained are epoch 0, which training has to beat.
        """
        if self.settings.start == "spectral" and not self.state.log:
            self._measure_start()
        while not self.finished:
            self._epoch()

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
        self.towers.load_state_dict(state["towers"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.state = Progress(**state["progress"])

    def _measure_start(self) -> None:
        with progress.step("Measuring the start") as current:
            validation = self.measure(self.dataset.validation)
            current.note(f"validation recall@{AT} {validation.recall:.4f}")
        figures = {"epoch": 0, "recall": validation.recall, "ndcg": validation.ndcg, "seconds": 0.0}
        self.state.log.append(figures)
        self.state.best_recall = validation.recall
        self._on_best(self.towers.state_dict())
        self._on_checkpoint(self.state_dict())

    def _epoch(self) -> None:
        state, settings = self.state, self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.epoch)
        order = torch.randperm(len(self._batches), generator=generator)
        if state.generator is not None:
            generator.set_state(state.generator.cpu())
        self.towers.train()
        started = saved = time.monotonic()
        with progress.step(f"Epoch {state.epoch + 1}", len(order)) as bar:
            bar.advance(state.position)
            while state.position < len(order):
                rows = order[state.position : state.position + settings.batch]
                state.loss_sum += self._step(self._batches.at(rows, generator), generator) * len(rows)
                state.position += len(rows)
                bar.advance(len(rows))
                bar.note(f"loss {state.loss_sum / state.position:.3f}")
                if time.monotonic() - saved >= CHECKPOINT_S:
                    saved = time.monotonic()
                    state.generator = generator.get_state()
                    self._on_checkpoint(self.state_dict())
            loss = state.loss_sum / state.position
            validation = self.measure(self.dataset.validation)
            bar.note(f"loss {loss:.3f}  validation recall@{AT} {validation.recall:.4f}")
        state.epoch += 1
        state.seconds += time.monotonic() - started
        state.position, state.loss_sum, state.generator = 0, 0.0, None
        state.log.append(
            {
                "epoch": state.epoch,
                "loss": loss,
                "recall": validation.recall,
                "ndcg": validation.ndcg,
                "seconds": state.seconds,
            }
        )
        # Without validation users nothing tells epochs apart: all are trained and the last one is kept.
        if validation.recall > state.best_recall or not len(self.dataset.validation):
            state.best_recall, state.best_epoch = validation.recall, state.epoch
            self._on_best(self.towers.state_dict())
        self._on_checkpoint(self.state_dict())

    def _step(self, batch: Batch, generator: torch.Generator) -> float:
        """One update; returns the loss."""
        drawn = torch.randint(len(self.item_tower), (self.settings.negatives,), generator=generator)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # of dropout, which takes no generator
        batch = batch.to(self.device)
        positions = torch.cat([batch.items, drawn.to(self.device)])
        loss = sampled_softmax(
            self.user_tower.encode(batch.features, batch.history, batch.offsets),
            self.item_tower(positions),
            positions,
            self._log_expected[positions],
            self.settings.temperature,
        )
        value = float(loss.detach())
        if not np.isfinite(value):
            raise BuilderError(
                f"the loss is {value}", where=f"epoch {self.state.epoch + 1}", remedy="Lower training.learning_rate."
            )
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return value

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
            tower(
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
