"""A training run and its folder.

runs/NAME/retrieval.yaml     the settings as resolved
runs/NAME/checkpoint.pt      the state to go on from
runs/NAME/towers.pt          the towers of the best epoch
runs/NAME/metrics.jsonl      a line an epoch (0 is a spectral start): loss, validation recall and NDCG at 20, seconds
runs/NAME/item_vectors.npy   [N, D] float32 in catalogue order, written at the end
runs/NAME/reranker.pt        the reranker, if there is one
runs/NAME/reranker_checkpoint.pt   the state of its training to go on from
runs/NAME/tensorboard/       figures of every epoch and of steps between
runs/NAME/report.json        the end: best epoch, validation and test figures, calibration, digest of the data
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder import ops, progress
from builder.config import Config
from builder.data.catalogue import Catalogue
from builder.data.columns import take
from builder.data.dataset import Dataset, read_dataset
from builder.data.lists import Lists
from builder.errors import BuilderError
from builder.evaluation.calibration import reliability
from builder.evaluation.metrics import quality
from builder.network.groups import TaskGroups
from builder.network.history import AttentionPooling, MeanPooling
from builder.network.neighbours import Neighbours
from builder.network.rerank import Reranker
from builder.network.towers import ItemTower, UserTower
from builder.training import distributed
from builder.training.batches import wire_features
from builder.training.checkpoint import restore, save, write_text
from builder.training.distributed import Group
from builder.training.logging import RunLog
from builder.training.neighbours import item_neighbours
from builder.training.rerank import Miner, best_items, probabilities, train_reranker
from builder.training.spectral import start_towers
from builder.training.trainer import AT, Trainer, encode_users
from client.schema import Feature

CONFIG, CHECKPOINT, TOWERS = "retrieval.yaml", "checkpoint.pt", "towers.pt"
METRICS, VECTORS, RERANKER, REPORT = "metrics.jsonl", "item_vectors.npy", "reranker.pt", "report.json"
RERANKER_CHECKPOINT, TENSORBOARD = "reranker_checkpoint.pt", "tensorboard"


@dataclass(frozen=True)
class Requests:
    """Held-out users as they would ask, Q of them.

    `features`: name -> [Q, 1] int64 keys or float32 numbers; `history` [Q, L] int64 item ids, newest last, -1 at the
    left (L is 1 for a tower without history); `exclude`: item ids each has seen; `targets`: item ids to be found.
    """

    features: dict[str, NDArray[Any]]
    history: NDArray[np.int64]
    exclude: Lists
    targets: Lists

    def __len__(self) -> int:
        return len(self.history)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run. `user_tower` and `reranker` (None: there is none) are in eval mode on the CPU; `item_vectors`
    [N, D] float32 in catalogue order.

    `figures`: best epoch, seconds, and recall and NDCG at 20 of validation and test.
    """

    config: Config
    dataset: Dataset
    user_tower: UserTower
    item_vectors: NDArray[np.float32]
    reranker: Reranker | None
    figures: dict[str, float]

    @property
    def catalogue(self) -> Catalogue:
        return self.dataset.catalogue

    @property
    def user_features(self) -> tuple[Feature, ...]:
        """In the order of the tower's inputs, the user id included."""
        return self.dataset.user_features

    @property
    def history_length(self) -> int:
        return self.config.network.history

    def held_out(
        self, part: Literal["test", "validation"] = "test", *, sample: int | None = None, seed: int = 0
    ) -> Requests:
        """The users of a part, or at most `sample` of them drawn by `seed`."""
        held_out = self.dataset.test if part == "test" else self.dataset.validation
        if sample is not None:
            held_out = held_out.sample(sample, seed)
        ids = self.catalogue.ids
        positions = held_out.history.padded(max(1, self.history_length))
        if not self.history_length:
            positions = np.full_like(positions, -1)
        arrays = wire_features(self.dataset.user_columns, held_out.users)
        return Requests(
            dict(zip((feature.name for feature in self.user_features), arrays, strict=True)),
            np.where(positions >= 0, ids[positions], -1),
            Lists(held_out.seen.offsets, ids[held_out.seen.values]),
            Lists(held_out.targets.offsets, ids[held_out.targets.values]),
        )

    @torch.no_grad()
    def queries(self, requests: Requests, chunk: int = 1024) -> torch.Tensor:
        """Query vectors `[Q, D] float32` of requests."""
        parts = []
        for start in range(0, len(requests), chunk):
            features = [torch.from_numpy(array[start : start + chunk]) for array in requests.features.values()]
            parts.append(self.user_tower.query(features, torch.from_numpy(requests.history[start : start + chunk])))
        return torch.cat(parts) if parts else torch.empty(0, self.config.network.dims)


def train(config: Config, out: Path, resume: bool) -> Path:
    """Train what `config` describes into the folder `out`, which is returned.

    Under torchrun its processes train the towers together; the first one alone writes, trains the reranker and
    measures. `resume`: go on from the last checkpoint, if there is one, with the same result as an uninterrupted run.
    Raises BuilderError: a run stands there and `resume` is not set, it is of other settings or data, the data cannot be
    read or differ between processes.
    """
    log = RunLog(None)
    try:
        with distributed.processes() as group:
            if group.first:
                log = RunLog(out / TENSORBOARD)
                if (out / CHECKPOINT).exists() and not resume:
                    raise BuilderError(
                        "a run stands there already",
                        where=str(out),
                        remedy="Go on with --resume, choose another --out, or delete it.",
                    )
            dataset = _read(config)
            for note in dataset.notes:
                progress.say(note)
            digest = _digest(config, dataset)
            group.refuse_differences(zlib.crc32(config.to_yaml().encode(), digest), "settings or data")
            trainer = _train_towers(config, dataset, digest, out, group, log)
        if group.first:
            _finish(config, dataset, digest, out, trainer, log)
    finally:
        log.close()
    return out


def _train_towers(config: Config, dataset: Dataset, digest: int, out: Path, group: Group, log: RunLog) -> Trainer:
    """Train them until they are finished, from the checkpoint in `out` if there is one."""
    if group.first:
        out.mkdir(parents=True, exist_ok=True)
        if (out / CONFIG).exists() and (out / CHECKPOINT).exists():
            before = Config.load(out / CONFIG)
            _refuse_other_settings(config, before, out)
            if config != before:  # no longer finished: what is written until then is not of one training
                (out / REPORT).unlink(missing_ok=True)
        write_text(config.to_yaml(), out / CONFIG)
    torch.manual_seed(config.training.seed)
    user_tower, item_tower = build_towers(config, dataset)
    started = time.monotonic()
    if config.training.start == "spectral" and not (out / CHECKPOINT).exists():
        with progress.step("Singular vectors of the interactions"):
            start_towers(user_tower, item_tower, dataset.train, seed=config.training.seed)
    seconds = time.monotonic() - started

    def on_checkpoint(state: dict[str, Any]) -> None:
        lines = state["progress"]["log"]
        write_text("".join(json.dumps(line) + "\n" for line in lines), out / METRICS)
        save({**state, "data": digest}, out / CHECKPOINT)

    trainer = Trainer(
        user_tower,
        item_tower,
        dataset,
        config.training,
        group,
        log=log,
        on_checkpoint=on_checkpoint,
        on_best=lambda towers: save(towers, out / TOWERS),
    )
    trainer.state.seconds = seconds
    path, cpu = out / CHECKPOINT, torch.device("cpu")
    state = group.from_first(lambda: restore(path, cpu) if path.exists() else None)
    if state is not None:
        if state.pop("data") != digest:
            raise BuilderError("the data has changed since", where=str(out), remedy="Train into another folder.")
        with _damage_told(out):
            trainer.load_state_dict(state)
    if not len(dataset.validation):
        progress.say("no user has enough interactions for validation: every epoch is trained and the last one kept")
    trainer.fit()
    return trainer


def _finish(config: Config, dataset: Dataset, digest: int, out: Path, trainer: Trainer, log: RunLog) -> None:
    """Write the vectors of the best epoch, measure it, train the reranker, and write the report."""
    trainer.towers.load_state_dict(restore(out / TOWERS, trainer.device))
    _write_vectors(trainer.item_tower.vectors(), out / VECTORS)
    with progress.step("Measuring on the test part"):
        test = trainer.measure(dataset.test)
    best = next(line for line in trainer.state.log if line["epoch"] == trainer.state.best_epoch)
    figures = {
        "best_epoch": float(trainer.state.best_epoch),
        "epochs": float(trainer.state.epoch),
        "seconds": round(trainer.state.seconds, 1),
        f"validation_recall_at_{AT}": best["recall"],
        f"validation_ndcg_at_{AT}": best["ndcg"],
        f"test_recall_at_{AT}": test.recall,
        f"test_ndcg_at_{AT}": test.ndcg,
    }
    report: dict[str, Any] = {"figures": figures, "data": digest}
    if config.rerank is not None:
        user_tower = trainer.user_tower.to("cpu").eval()
        found, report["calibration"] = _train_reranker(config, dataset, user_tower, out, log)
        figures |= found
    write_text(json.dumps(report, indent=2) + "\n", out / REPORT)


def _train_reranker(
    config: Config, dataset: Dataset, user_tower: UserTower, out: Path, log: RunLog
) -> tuple[dict[str, float], dict[str, Any]]:
    """Train it on what the index returns to validation users, save it, and measure it on the test users.

    All on the CPU, where the operators of search and graph are. Returns figures, and the calibration of each task.
    """
    if config.rerank is None:
        raise ValueError("no reranker is configured")
    cpu = torch.device("cpu")
    vectors = np.load(out / VECTORS, mmap_mode="r")
    ops.load()  # where they are to be compiled first, it takes a while that is no step's
    with progress.step("Neighbours of items"):
        width = config.rerank.neighbours if config.network.history else 0
        graph = item_neighbours(dataset.train, len(dataset.catalogue), width)
    reranker = build_reranker(config, dataset, *map(torch.from_numpy, graph))
    with progress.step("Indexing for the reranker"):
        miner = Miner(dataset.catalogue, vectors, config.rerank.candidates, seed=config.training.seed)
    with progress.step(f"Candidates of {len(dataset.validation):,} validation users"):
        queries = encode_users(user_tower, dataset, dataset.validation, cpu)
        candidates = miner.candidates(queries, dataset.validation, config.network.history)
    for task, seen in zip(config.tasks, candidates.labels.flatten(0, 1).any(0).tolist(), strict=True):
        if not seen:
            progress.say(
                f"no candidate that a validation user took is positive for task {task!r}: nothing tells how likely it "
                "is, and its probability stays near 0 for every item"
            )
    figures = train_reranker(
        reranker,
        candidates,
        dataset.validation,
        vectors,
        config.rerank,
        seed=config.training.seed,
        device=cpu,
        checkpoint=out / RERANKER_CHECKPOINT,
        log=log,
    )
    save(reranker.state_dict(), out / RERANKER)
    calibration: dict[str, Any] = {}
    if len(dataset.test):
        with progress.step(f"Measuring the reranker on {len(dataset.test):,} test users"):
            queries = encode_users(user_tower, dataset, dataset.test, cpu)
            candidates = miner.candidates(queries, dataset.test, config.network.history)
            found = probabilities(reranker, candidates, vectors)
            items = best_items(candidates.items, found.sum(2), AT)
            test = quality(items, dataset.test.targets)
            real = candidates.items >= 0
            for t, task in enumerate(config.tasks):
                measured = reliability(found[real][:, t].numpy(), candidates.labels[real][:, t].numpy())
                calibration[task] = asdict(measured)
        figures |= {f"rerank_test_recall_at_{AT}": test.recall, f"rerank_test_ndcg_at_{AT}": test.ndcg}
    return figures, calibration


def load(out: Path) -> TrainedRun:
    """Load a finished run; its data files are read again.

    Raises BuilderError: no run there, not finished, the data has changed since.
    """
    if not (out / REPORT).exists():
        unfinished = (out / CHECKPOINT).exists()
        raise BuilderError(
            "the run is not finished" if unfinished else "no run there",
            where=str(out),
            remedy=f"Finish it with: builder train CONFIG --out {out} --resume"
            if unfinished
            else "Train one with builder train.",
        )
    config = Config.load(out / CONFIG)
    dataset = _read(config)
    with _damage_told(out):
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        if _digest(config, dataset) != report["data"]:
            raise BuilderError("the data has changed since the training", where=str(out), remedy="Train again.")
        user_tower, _ = build_towers(config, dataset)
        towers = restore(out / TOWERS, torch.device("cpu"))
        user_tower.load_state_dict(
            {name.removeprefix("user."): tensor for name, tensor in towers.items() if name.startswith("user.")}
        )
        vectors = np.load(out / VECTORS, mmap_mode="r")
        reranker = None
        if config.rerank is not None:
            state = restore(out / RERANKER, torch.device("cpu"))
            reranker = build_reranker(config, dataset, state["neighbours.rows"], state["neighbours.weights"]).eval()
            reranker.load_state_dict(state)
        return TrainedRun(config, dataset, user_tower.eval(), vectors, reranker, report["figures"])


@contextmanager
def _damage_told(out: Path) -> Iterator[None]:
    """Tell what torch, NumPy and json raise for files that are cut short, changed or of other towers."""
    try:
        yield
    except BuilderError:
        raise
    except Exception as error:  # there is no list of what they raise for any bytes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BuilderError(
            f"the run does not fit its data and settings, or is damaged: {reason}",
            where=str(out),
            remedy="Train again, into another folder or after deleting this one.",
        ) from error


def build_towers(config: Config, dataset: Dataset) -> tuple[UserTower, ItemTower]:
    """Towers with fresh weights. Users without a training interaction give no entry to vocabularies."""
    known = np.flatnonzero(np.diff(dataset.train.offsets))
    columns = tuple(take(column, known) for column in dataset.user_columns)
    network = config.network
    pooling = (
        AttentionPooling(
            network.dims, network.history, blocks=network.blocks, heads=network.heads, dropout=network.dropout
        )
        if network.pooling == "attention"
        else MeanPooling()
    )
    user_tower = UserTower(
        columns,
        dataset.catalogue.ids,
        dims=network.dims,
        history_length=network.history,
        pooling=pooling,
        groups=None if config.groups is None else TaskGroups(config.groups, config.task_factors),
    )
    spectral = config.training.start == "spectral"
    shared = user_tower.history if network.history and not spectral else None
    catalogue = dataset.catalogue
    item_tower = ItemTower(catalogue.columns, len(catalogue), dims=network.dims, ids=shared, unit=not spectral)
    return user_tower, item_tower


def build_reranker(config: Config, dataset: Dataset, neighbours: Tensor, weights: Tensor) -> Reranker:
    """A reranker with fresh weights, the same for the same seed, over a graph `[N, J]` (`item_neighbours`)."""
    if config.rerank is None:
        raise ValueError("no reranker is configured")
    catalogue = dataset.catalogue
    torch.manual_seed(config.training.seed)
    return Reranker(
        config.rerank.kind,
        catalogue.columns,
        np.bincount(dataset.train.items, minlength=len(catalogue)),
        dims=config.network.dims,
        tasks=len(config.tasks),
        hidden=config.rerank.hidden,
        neighbours=Neighbours(neighbours, weights, history=config.network.history),
    )


def _read(config: Config) -> Dataset:
    with progress.step("Reading data") as current:
        dataset = read_dataset(config)
        current.note(
            f"{len(dataset.catalogue):,} items, {len(dataset.user_keys):,} users, {len(dataset.train):,} to train on"
        )
    return dataset


def _digest(config: Config, dataset: Dataset) -> int:
    """CRC-32 of what the towers' rows mean and what they learn from."""
    checksum, train = 0, dataset.train
    labels = () if config.groups is None else (train.labels,)
    for array in (dataset.catalogue.ids, dataset.user_keys, train.offsets, train.items, *labels):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def _refuse_other_settings(config: Config, before: Config, out: Path) -> None:
    """Only what comes after the towers, and for how long to train, may change on the way."""
    for name in ("data", "split", "tasks", "network", "training"):
        now, then = getattr(config, name), getattr(before, name)
        if name == "training":
            free = {"epochs", "patience"}
            now, then = now.model_dump(exclude=free), then.model_dump(exclude=free)
        if now != then:
            raise BuilderError(
                f"the run there has other settings under {name}", where=str(out), remedy="Choose another --out."
            )


def _write_vectors(vectors: NDArray[np.float32], path: Path) -> None:
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        np.save(file, vectors)
    temporary.replace(path)
