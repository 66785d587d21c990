"""The workloads of scripts/bench/mesh: catalogue, tower, reranker and requests, written for both sides from one source.

A prepared folder holds

    unified/retrieval/...          the exported artifact, as a model repository
    mesh/{tower,scoring}/...       the same modules cut out of it (mesh_services/models.py)
    vectors.npy, ids.npy, columns.npz    what Faiss and the filters are built from
    requests.npz                   inputs of Q requests: the first half tunes and calibrates, the second is replayed
    workload.json
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import ROOT
from mesh_services.models import write_models

from builder.config import IndexConfig
from builder.data.catalogue import Catalogue
from builder.data.columns import CategoryColumn, Column, NumberColumn, TagsColumn
from builder.data.synthetic import synthetic_vectors
from builder.evaluation.exact import exact_search
from builder.export.artifact import Source, export
from builder.export.manifest import read_manifest
from builder.export.sources import from_run
from builder.network.neighbours import Neighbours
from builder.network.rerank import Reranker
from builder.network.towers import UserTower
from builder.oplib import library_path
from builder.training.run import load
from client import Condition, F, compile_filter
from client.hashing import UNKNOWN_KEY, string_key
from client.schema import Feature, Schema

REQUESTS = 2048
RECALL = 0.95
HISTORY, NEIGHBOURS, HIDDEN = 50, 50, 64  # of the synthetic workloads
DAY = 86_400
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """`candidates`: what is asked for, each a line of the table; `rerank`: whether the artifact has a reranker."""

    name: str
    candidates: tuple[int, ...]
    items: int = 0
    dims: int = 0
    history: bool = True
    rerank: bool = True
    run: str = ""  # the trained run, of workloads that are not synthetic
    max_candidates: int = 16_384  # of a synthetic one
    results: int = 100


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("synthetic-1m", (1_000, 100, 10_000), 1_000_000, 64),
        Workload("synthetic-1m-value", (1_000,), 1_000_000, 64, rerank=False),
        Workload("synthetic-1m-128", (1_000,), 1_000_000, 128),
        Workload("synthetic-10m-value", (1_000,), 10_000_000, 64, history=False, rerank=False),
        Workload("gowalla", (500, 5_000), run="gowalla"),
        Workload("movielens", (400,), run="movielens"),
        Workload("synthetic-50k", (1_000,), 50_000, 64),
    )
}


def prepare(workload: Workload, folder: Path, runs: Path) -> None:
    """Build what is not there yet, or was made by other code. `runs`: holds the trained runs.

    Faiss's indexes stay as long as the vectors do.
    """
    described = folder / "workload.json"
    if described.exists() and json.loads(described.read_text()).get("code") == code():
        return
    for made in ("unified", "mesh", "ensemble"):
        shutil.rmtree(folder / made, ignore_errors=True)
    for stale in (*folder.glob("*.json"), *folder.glob("load-*.npz")):
        stale.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    source, users, exclude = _trained(workload, runs) if workload.run else _synthetic(workload)
    started = time.perf_counter()
    version = export(source, folder / "unified", rank=False)
    export_s = time.perf_counter() - started
    schema = read_manifest(version).read_schema()
    filters = _filters(workload, source, schema, len(exclude))
    np.savez(folder / "requests.npz", **users, filter=filters, exclude=exclude)
    vectors = np.asarray(source.vectors, dtype=np.float32)
    kept = folder / "vectors.npy"
    if not (kept.exists() and np.array_equal(np.load(kept, mmap_mode="r"), vectors)):
        for index in folder.glob("faiss-*.index"):
            index.unlink()
        np.save(kept, vectors)
    np.save(folder / "ids.npy", source.catalogue.ids)
    np.savez(folder / "columns.npz", **_columns(source.catalogue))
    write_models(version, schema, folder / "mesh")
    figures = {
        "name": workload.name,
        "code": code(),
        "items": len(source.catalogue),
        "dims": source.dims,
        "tasks": len(schema.tasks),
        "users": list(users),
        "candidates": read_manifest(version).index.candidates,
        "reranker": source.reranker.kind if source.reranker else None,
        "value": source.value,
        "recall_of_the_default": read_manifest(version).recall.measured,
        "export_s": round(export_s, 1),
        "artifact_bytes": sum(read_manifest(version).index.bytes.values()),
    }
    described.write_text(json.dumps(figures, indent=1) + "\n")


def code() -> str:
    """What an artifact depends on: operators, network, index and export, and this file."""
    sources = [
        path for part in ("network", "index", "export") for path in sorted((ROOT / "builder" / part).glob("*.py"))
    ]
    text = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return f"{library_path().parent.name}-{zlib.crc32(text):08x}"


def _trained(workload: Workload, runs: Path) -> tuple[Source, Inputs, np.ndarray]:
    """A trained run and its test users, who have `exclude` behind them."""
    run = load(runs / workload.run / "run")
    source = from_run(run)
    asking = run.held_out("test", sample=2 * REQUESTS)
    seen = asking.exclude.lengths
    users = np.flatnonzero(seen <= 512)[:REQUESTS]  # of Gowalla, all but a few
    users = users[: len(users) // 2 * 2]
    width = 1 << int(np.ceil(np.log2(max(8, seen[users].max()))))
    exclude = asking.exclude.take(users).padded(width)
    inputs = {name: values[users] for name, values in asking.features.items()}
    return source, {**inputs, "history": asking.history[users]}, exclude


def _synthetic(workload: Workload) -> tuple[Source, Inputs, np.ndarray]:
    items, dims = workload.items, workload.dims
    rng = np.random.default_rng(1)
    vectors, tastes = synthetic_vectors(items, dims, seed=0, queries=REQUESTS)
    ids = np.arange(items, dtype=np.int64) * 3 + 10_000
    catalogue = Catalogue(ids, _features(items, rng), np.arange(items))
    near = exact_search(tastes, vectors, 4 * HISTORY)[0] if workload.history else ()
    history = np.full((REQUESTS, 64), -1, np.int64)
    for user, items_near in enumerate(near):
        length = int(rng.integers(10, HISTORY + 1))
        history[user, 64 - length :] = ids[rng.permutation(items_near)[:length]]
    keys = np.arange(REQUESTS, dtype=np.int64)
    user_id = CategoryColumn(Feature("user_id", "category", "integer"), keys)
    tower = UserTower((user_id,), ids, dims=dims, history_length=HISTORY if workload.history else 0).eval()
    with torch.no_grad():  # a user's vector is their taste and the mean of their history, the items' own vectors
        tower.encoders[0].embedding.weight[1:] = torch.from_numpy(tastes)
        tower.encoders[0].embedding.weight[0] = 0.0
        if workload.history:
            tower.history.weight[1:] = torch.from_numpy(vectors)
            tower.history.weight[0] = 0.0
        queries = tower([torch.from_numpy(keys)[:, None]], torch.from_numpy(history))
    users = {"user_id": keys[:, None], **({"history": history} if workload.history else {})}
    source = Source(
        name=workload.name,
        catalogue=catalogue,
        vectors=vectors,
        tower=tower,
        user_features=(user_id.feature,),
        history_length=HISTORY if workload.history else 0,
        queries=queries[: REQUESTS // 2].contiguous(),
        queries_from="users",
        settings=IndexConfig(recall=RECALL, results=workload.results, max_candidates=workload.max_candidates),
        tasks=("click", "buy") if workload.rerank else ("score",),
        reranker=_reranker(items, dims, rng) if workload.rerank else None,
        value="0.7 * click + 0.3 * buy * log(1 + price)" if workload.rerank else "score + 0.01 * log(1 + price)",
    )
    return source, users, history if workload.history else np.full((REQUESTS, 8), -1, np.int64)


def _reranker(items: int, dims: int, rng: np.random.Generator) -> Reranker:
    """An MLP of random weights: both sides have the same, and what it costs does not depend on them."""
    torch.manual_seed(0)
    near = torch.from_numpy(rng.integers(0, items, (items, NEIGHBOURS), dtype=np.int32))
    graph = Neighbours(near, torch.rand(items, NEIGHBOURS), history=HISTORY)
    popularity = rng.zipf(1.5, items)
    reranker = Reranker("mlp", (), popularity, dims=dims, tasks=2, hidden=HIDDEN, neighbours=graph).eval()
    for parameter in reranker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return reranker


def _features(items: int, rng: np.random.Generator) -> tuple[Column, ...]:
    """Six filter features, independent of the vectors; frequencies fall off as power laws."""

    def skewed(values: int, count: int) -> np.ndarray:
        shares = np.arange(1, values + 1) ** -0.8
        return rng.choice(values, count, p=shares / shares.sum())

    tags = np.sort(skewed(2_000, 3 * items).reshape(items, 3), axis=1)
    distinct = np.concatenate([np.ones((items, 1), bool), np.diff(tags, axis=1) > 0], axis=1)
    regions = rng.random((items, 30), dtype=np.float32) < np.linspace(0.9, 0.1, 30, dtype=np.float32)
    return (
        CategoryColumn(Feature("category", "category", "integer", True), skewed(40, items).astype(np.int64)),
        CategoryColumn(Feature("brand", "category", "integer", True), skewed(5_000, items).astype(np.int64)),
        TagsColumn(
            Feature("tags", "tags", "integer", True), _offsets(distinct.sum(1)), tags[distinct].astype(np.int64)
        ),
        TagsColumn(Feature("regions", "tags", "integer", True), _offsets(regions.sum(1)), np.nonzero(regions)[1]),
        NumberColumn(Feature("price", "number", None, True), rng.lognormal(3, 1, items).round(2)),
        NumberColumn(Feature("released", "date", None, True), rng.integers(10_000, 20_000, items) * float(DAY)),
    )


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _filters(workload: Workload, source: Source, schema: Schema, count: int) -> np.ndarray:
    """Programs [count, F] int64, padded to one width, so that requests batch."""
    if workload.run == "gowalla":  # it has no features: what a user has seen is excluded, nothing else is filtered
        return np.zeros((count, 16), np.int64)
    rng = np.random.default_rng(2)
    make = _film_filter if workload.run else _seven_conditions
    programs = [np.asarray(compile_filter(make(source, rng), schema)) for _ in range(count)]
    width = 1 << int(np.ceil(np.log2(max(map(len, programs)))))
    return np.stack([np.pad(program, (0, width - len(program))) for program in programs])


def _seven_conditions(source: Source, rng: np.random.Generator) -> Condition:
    category, brand, tags, _, price, released = source.catalogue.columns
    assert isinstance(price, NumberColumn)
    assert isinstance(released, NumberColumn)

    def some(column: Any, count: int) -> list[int]:
        return [int(key) for key in np.unique(rng.choice(column.keys, count))]

    low, high = rng.uniform(0, 0.3), rng.uniform(0.6, 1)
    prices = np.quantile(price.values[:10_000], [low, high])
    since = np.quantile(released.values[:10_000], rng.uniform(0, 0.4))
    return (
        (F.category.is_in(some(category, 6)) | F.tags.any_of(*some(tags, 4)))
        & F.regions.any_of(int(rng.integers(30)))
        & (F.price >= float(prices[0]))
        & (F.price <= float(prices[1]))
        & (F.released >= np.datetime64(int(since), "s").item())
        & ~F.brand.is_in(some(brand, 3))
    )


def _film_filter(source: Source, rng: np.random.Generator) -> Condition:
    """Two genres, as often as they occur, and films from some year on."""
    genres: Any = next(column for column in source.catalogue.columns if column.feature.name == "genres")
    years: Any = next(column for column in source.catalogue.columns if column.feature.name == "year")
    names = {string_key(name): name for name in source.vocabularies["genres"]}
    wanted = {names[int(key)] for key in rng.choice(genres.keys, 2)}
    return F.genres.any_of(*sorted(wanted)) & (F.year >= float(np.nanquantile(years.values, rng.uniform(0, 0.5))))


def _columns(catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Filter features as the mesh's inverted indexes read them (mesh_services/sets.py)."""
    found: dict[str, Any] = {"items": len(catalogue)}
    columns = [column for column in catalogue.columns if column.feature.filter]
    for place, column in enumerate(columns):
        if isinstance(column, NumberColumn):
            found[f"{place}.values"] = column.values
        elif isinstance(column, TagsColumn):
            found[f"{place}.keys"] = column.keys
            found[f"{place}.owners"] = np.repeat(np.arange(len(catalogue)), np.diff(column.offsets))
        else:
            known = np.flatnonzero(column.keys != UNKNOWN_KEY)
            found[f"{place}.keys"], found[f"{place}.owners"] = column.keys[known], known
    return {**found, "features": len(columns)}
