"""What an artifact can be made of: a configuration with given vectors, or a trained run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from builder.config import Config, Embeddings
from builder.data.embeddings import read_embeddings, read_samples
from builder.data.vectors import VectorSource
from builder.data.vocabularies import string_values
from builder.errors import BuilderError, ConfigError
from builder.export.artifact import CALIBRATION_QUERIES, Source
from builder.export.torchscript import load_tower
from builder.training.run import TrainedRun, load
from client.schema import Feature


def read_source(path: Path) -> Source:
    """Read what `builder export` was given: a run folder, a retrieval.yaml with embeddings, or a .npy array."""
    if not path.exists():
        raise BuilderError(
            "no such file or folder",
            where=str(path),
            remedy="Give a run folder (builder train writes it), a retrieval.yaml with embeddings, or a .npy array.",
        )
    if path.is_dir():
        return from_run(load(path))
    if path.suffix == ".npy":
        return from_embeddings(Config(name=_model_name(path.stem), embeddings=Embeddings(path=path)))
    return from_embeddings(Config.load(path))


def from_run(run: TrainedRun) -> Source:
    """A trained run; recall is measured on users of its validation part, as they would ask."""
    asking = run.held_out("validation", sample=CALIBRATION_QUERIES)
    if len(asking):
        queries, queries_from = run.queries(asking), "validation users"
    else:
        queries, queries_from = _sample_items(run.item_vectors, seed=0), "item vectors"
    return Source(
        name=run.config.name,
        catalogue=run.catalogue,
        vectors=run.item_vectors,
        tower=run.user_tower,
        user_features=run.user_features,
        history_length=run.history_length,
        queries=queries,
        queries_from=queries_from,
        settings=run.config.index,
        tasks=tuple(run.config.tasks),
        reranker=run.reranker,
        value=run.config.value,
        diversity=run.config.diversity,
        task_groups=run.config.network.task_groups,
        seed=run.config.training.seed,
        vocabularies=string_values(run.config.items, run.catalogue),
        training=run.figures,
    )


def from_embeddings(config: Config) -> Source:
    """Vectors trained elsewhere, with a TorchScript user tower or none. Raises what the readers raise."""
    embeddings = config.embeddings
    if embeddings is None:
        raise ConfigError("has no embeddings; train it first, and export the run", where=config.name)
    catalogue, vectors = read_embeddings(config)
    dims = int(vectors[:1].shape[1])
    features: tuple[Feature, ...] = ()
    history = 0
    tower = None
    if embeddings.query is not None:
        users = config.data.users
        features = tuple(Feature(f.name, f.kind, f.values) for f in users.features) if users else ()
        history = config.network.history
        tower = load_tower(embeddings.query, features, history, dims)
    if embeddings.samples is not None:
        queries = torch.from_numpy(read_samples(embeddings.samples, dims))[:CALIBRATION_QUERIES]
        queries_from = embeddings.samples.name
    else:
        queries, queries_from = _sample_items(vectors, seed=0), "item vectors"
    return Source(
        name=config.name,
        catalogue=catalogue,
        vectors=vectors,
        tower=tower,
        user_features=features,
        history_length=history,
        queries=queries,
        queries_from=queries_from,
        settings=config.index,
        tasks=tuple(config.tasks),
        value=config.value,
        diversity=config.diversity,
        vocabularies=string_values(config.data.items, catalogue) if config.data.items else {},
    )


def _model_name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem)


def _sample_items(vectors: VectorSource, seed: int) -> Tensor:
    """Item vectors stand in for queries where none are given: the only ones known to lie where the items lie."""
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:CALIBRATION_QUERIES]
    return torch.from_numpy(np.asarray(vectors[np.sort(chosen)], dtype=np.float32))
