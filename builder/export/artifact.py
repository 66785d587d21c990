"""From a source of vectors and features to a version directory."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from builder import ops
from builder.config import Diversity, IndexConfig
from builder.data.catalogue import Catalogue
from builder.data.vectors import VectorSource
from builder.errors import BuilderError
from builder.export.calibrate import (
    CANDIDATES,
    Calibration,
    calibrate,
    candidates_for,
    exact_truth,
    mean_results,
)
from builder.export.formats import Format, check_formats, formats_writer
from builder.export.manifest import FORMAT, OPERATORS, FileEntry, IndexStatistics, Manifest, Recall
from builder.export.repository import check_target, write_version
from builder.export.torchscript import script
from builder.formula import names_of, parse_formula
from builder.index.blocks import BLOCK
from builder.index.build import Index, Step, build_index
from builder.index.kmeans import automatic_clusters
from builder.index.projection import choose_projection, leading_directions
from builder.network.diversity import DiverseSelection
from builder.network.groups import GroupReranking, GroupScores, TaskGroups
from builder.network.items import ItemFeatures, number_names
from builder.network.neighbours import Neighbours
from builder.network.pipeline import Pipeline
from builder.network.ranking import Ranking
from builder.network.rerank import Reranker, Reranking, RetrievalScore
from builder.network.search import Search
from builder.network.towers import UserTower
from builder.network.value import ValueModel
from builder.network.vocabulary import Vocabulary
from client.schema import Feature, Schema

CALIBRATION_QUERIES = 1000
CALIBRATION_AT = 100  # recall is measured at the top 100, or at the artifact's results if those are fewer
MAX_DIMS = (2**31 - 1) // 127**2  # the int32 sums of scan are exact up to here


@dataclass(frozen=True)
class Source:
    """What an artifact is made of. `tower` None: requests carry query vectors. `queries` [Q, D] measure recall.
    `reranker` None: the one task's score is that of the search. `value`: a formula over tasks and item numbers, None
    for the weighted sum of the tasks. `diversity`: rules of the last selection. `task_groups`: where `tower` gives a
    vector for each.
    """

    name: str
    catalogue: Catalogue
    vectors: VectorSource
    tower: nn.Module | None
    user_features: tuple[Feature, ...]
    history_length: int
    queries: Tensor
    queries_from: str
    settings: IndexConfig
    tasks: tuple[str, ...]
    reranker: Reranker | None = None
    value: str | None = None
    diversity: Diversity | None = None
    task_groups: tuple[tuple[str, ...], ...] | None = None
    seed: int = 0
    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)

    @property
    def dims(self) -> int:
        return int(self.vectors[:1].shape[1])


def export(
    source: Source,
    repository: Path,
    *,
    model: str = "retrieval",
    rank: bool = True,
    formats: Collection[Format] = (),
    threads: int = 1,
    instances: int = 1,
    step: Step = lambda description: lambda done: None,
) -> Path:
    """Build the index, choose its defaults, script the network and write the next version of `model`.

    `rank`: write the ranking model too, which scores given items, as the same version of `MODEL_rank`. `formats`: write
    these beside model.pt. Returns the version directory. Raises `BuilderError` for settings that the catalogue cannot
    meet, for formats that cannot be written, and for what `write_version` raises; nothing is half-written.
    """
    check_target(repository, model, ranked=rank)
    own_tower = isinstance(source.tower, torch.jit.ScriptModule)
    check_formats(formats, own_tower=own_tower, diverse=source.diversity is not None)
    settings, items = source.settings, len(source.catalogue)
    if settings.clusters != "auto" and settings.clusters > items:
        raise BuilderError(
            f"got {settings.clusters}, expected at most the number of items, {items}",
            where="index.clusters",
            remedy="Lower it, or set clusters: auto.",
        )
    clusters = automatic_clusters(items) if settings.clusters == "auto" else settings.clusters
    if settings.probes != "auto" and settings.probes > clusters:
        raise BuilderError(
            f"got {settings.probes}, expected at most the number of clusters, {clusters}",
            where="index.probes",
            remedy="Lower it, or set probes: auto.",
        )
    if source.dims > MAX_DIMS:
        raise BuilderError(f"vectors have {source.dims:,} dims, expected at most {MAX_DIMS:,}", where=source.name)
    for feature in source.user_features:
        if not feature.name.isascii():
            raise BuilderError(
                f"user feature {feature.name!r}: TorchScript takes ASCII names only",
                where=source.name,
                remedy="Rename it (column: keeps the name in the file).",
            )
    if settings.code_dims != "auto" and settings.code_dims > source.dims:
        raise BuilderError(
            f"got {settings.code_dims}, expected at most the dims of the vectors, {source.dims}",
            where="index.code_dims",
            remedy="Lower it, or set code_dims: auto.",
        )
    ops.load()
    done = step("Choosing the dims of codes")
    projection = projection_of(source)
    done(1.0)
    index = build_index(
        source.vectors,
        source.catalogue.ids,
        source.catalogue.columns,
        clusters=clusters,
        seed=source.seed,
        projection=projection,
        step=step,
    )
    schema = Schema(
        name=source.name,
        user_features=source.user_features,
        item_features=source.catalogue.features,
        tasks=source.tasks,
        history_length=source.history_length,
        query_dims=0 if source.tower is not None else source.dims,
        max_results=settings.results,
        max_candidates=settings.max_candidates,
        clusters=index.clusters,
    )
    search = Search(
        index,
        fingerprint=schema.fingerprint,
        candidates=candidates_for(CANDIDATES[-1], settings.results, settings.max_candidates),
        max_candidates=settings.max_candidates,
        max_filter_words=settings.max_filter_words,
    )
    truth = exact_truth(
        search,
        source.vectors,
        source.catalogue.ids,
        source.queries,
        at=min(CALIBRATION_AT, settings.results),
        on_step=step("Measuring recall"),
    )
    calibration = calibrate(
        search,
        truth,
        target=settings.recall,
        results=settings.results,
        probes=None if settings.probes == "auto" else settings.probes,
        candidates=_candidates(source),
    )
    done = step("Writing the model")
    numbers = number_names(index.forward)
    formula = None if source.value is None else parse_formula(source.value, {*schema.tasks, *numbers})
    items_of_index = ItemFeatures(index.forward, () if formula is None else set(names_of(formula)))
    value = ValueModel(schema.tasks, formula, items_of_index.used)
    groups = getattr(source.tower, "groups", None) if isinstance(source.tower, UserTower) else None
    pipeline = Pipeline(
        source.tower,
        search,
        _scoring(source, index, groups),
        value,
        items_of_index,
        results=settings.results,
        diversity=_diversity(source, index),
        groups=groups,
    )
    scripted = script(pipeline, schema)
    left = mean_results(search, pipeline.diversity, truth.queries, settings.results)
    statistics = _statistics(index, pipeline, source, calibration, left)
    return write_version(
        repository,
        model,
        scripted,
        schema,
        lambda files: _manifest(source, schema, statistics, calibration, files),
        ranking=script(Ranking(pipeline), schema) if rank else None,
        write_more=formats_writer(formats, pipeline, schema, _versions()),
        threads=threads,
        instances=instances,
    )


def _versions() -> dict[str, str]:
    return {"silvertriton": installed_version("silvertriton"), "torch": torch.__version__}


def _candidates(source: Source) -> int | None:
    """None: as few as find the results. What orders them anew or passes some over gets as many as `auto` ever takes."""
    settings = source.settings
    if settings.candidates != "auto":
        return settings.candidates
    if source.value is None and source.reranker is None and source.diversity is None:
        return None
    return candidates_for(CANDIDATES[-1], settings.results, settings.max_candidates)


def _scoring(
    source: Source, index: Index, groups: TaskGroups | None
) -> Reranking | RetrievalScore | GroupReranking | GroupScores:
    """What tells the scores of the tasks."""
    if source.reranker is None:
        return RetrievalScore() if groups is None else GroupScores(groups)
    reranking = _reranking(source.reranker, source, index)
    return reranking if groups is None else GroupReranking(groups, reranking)


def _reranking(reranker: Reranker, source: Source, index: Index) -> Reranking:
    """The reranker with what it keeps of each item, in the order of the index."""
    kept = reranker.keep(source.vectors)
    item_of_row = torch.from_numpy(index.layout.item_of_row)
    rows = torch.where((item_of_row >= 0).unsqueeze(1), kept[item_of_row.clamp(min=0)], 0)
    graph = reranker.neighbours
    row_of_item = torch.from_numpy(index.layout.row_of_item.astype(np.int32))
    neighbours = torch.where(graph.rows >= 0, row_of_item[graph.rows.clamp(min=0)], -1)
    order = torch.from_numpy(np.argsort(source.catalogue.ids))  # by ascending id, as item_rows
    of_rows = Neighbours(neighbours[order], graph.weights[order], history=graph.history)
    return Reranking(reranker.scorer, rows, of_rows, Vocabulary(np.sort(source.catalogue.ids)))


def _diversity(source: Source, index: Index) -> DiverseSelection | None:
    if source.diversity is None:
        return None
    at_most, mmr = source.diversity.at_most, source.diversity.mmr
    return DiverseSelection(index.forward, index.vectors, at_most=at_most, mmr=mmr)


def projection_of(source: Source) -> Tensor:
    settings = source.settings
    if settings.code_dims == "auto":
        return choose_projection(source.vectors, source.queries, results=settings.results, seed=source.seed)
    return leading_directions(source.vectors, settings.code_dims, seed=source.seed)


def _statistics(
    index: Index, pipeline: Pipeline, source: Source, calibration: Calibration, left: float | None
) -> IndexStatistics:
    items_of_cluster = np.bincount(
        np.repeat(np.arange(index.clusters), np.diff(index.cluster_blocks.numpy()) * BLOCK),
        weights=(index.ids >= 0).numpy(),
        minlength=index.clusters,
    )
    search = pipeline.search
    groups = {
        "codes": [index.codes, index.scales, index.row_codes],
        "vectors": [index.vectors],
        "ids": [index.ids, index.item_rows],
        "centroids": [
            index.projection,
            index.centroid_codes,
            index.centroid_scales,
            index.centroid_spreads,
            index.cluster_blocks,
        ],
        "reach": [search.reach],
        "filters": [*index.filters.tensors().values(), index.valid],
        "forward columns": list(index.forward.values()),
        "reranker": [] if source.reranker is None else [*pipeline.rerank.parameters(), *pipeline.rerank.buffers()],
    }
    if pipeline.diversity is not None:
        groups["diversity"] = list(pipeline.diversity.buffers())
    return IndexStatistics(
        items=len(source.catalogue),
        dims=source.dims,
        code_dims=index.projection.shape[1],
        clusters=index.clusters,
        cluster_items=(int(items_of_cluster.min()), int(np.median(items_of_cluster)), int(items_of_cluster.max())),
        probes=search.probes,
        candidates=search.candidates,
        exact_rows=search.exact_rows,
        reach=calibration.reach,
        mean_probes=calibration.mean_probes,
        max_filter_words=search.max_filter_words,
        bytes={name: sum(tensor.nbytes for tensor in tensors) for name, tensors in groups.items()},
        mean_results=left,
    )


def _manifest(
    source: Source,
    schema: Schema,
    statistics: IndexStatistics,
    calibration: Calibration,
    files: dict[str, FileEntry],
) -> Manifest:
    return Manifest.model_validate(
        {
            "format": FORMAT,
            "name": source.name,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            **_versions(),
            "operators": OPERATORS,
            "schema": json.loads(schema.to_json()),
            "fingerprint": schema.fingerprint,
            "vocabularies": source.vocabularies,
            "value": source.value,
            "diversity": source.diversity,
            "task_groups": source.task_groups,
            "index": statistics,
            "recall": Recall(
                at=calibration.at,
                target=source.settings.recall,
                measured=calibration.recall,
                queries=calibration.queries,
                source=source.queries_from,
            ),
            "training": source.training,
            "files": files,
        }
    )
