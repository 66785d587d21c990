"""Chooses the defaults of a version anew, for another recall, and shows what each setting would cost."""

from __future__ import annotations

import contextlib
import datetime
import platform
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder import ops
from builder.errors import BuilderError
from builder.export.artifact import CALIBRATION_AT, Source
from builder.export.calibrate import (
    CANDIDATES,
    Calibration,
    Truth,
    calibrate,
    candidates_for,
    exact_truth,
    mean_probes,
    mean_results,
    measure_recall,
    median_milliseconds,
)
from builder.export.config import configured_processes
from builder.export.manifest import MODEL_FILE, OPERATORS, Curve, Manifest, Point, Recall, verify
from builder.export.repository import check_target, find_version, versions, write_version
from builder.index.build import Step
from client.schema import RANKING_SUFFIX

REACH = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # beside the chosen one: the curve
TURNS = 3  # of timing
COMPARED = 16_384  # vectors at a time: 8 MiB of float32 at 128 dims
SAME = 1e-3  # of a row's largest component; float16 rounds by half of that at most
NOTHING = 2e-36  # a row of smaller components is stored as zero


@dataclass(frozen=True)
class Tuned:
    """`version`: the directory written, None for a trial; `curve`: by reach, then candidates, `chosen` among it.

    `keeps_candidates`: they are not chosen, but those of the version.
    """

    version: Path | None
    chosen: Point
    curve: tuple[Point, ...]
    recall: Recall
    keeps_candidates: bool


def tune(
    source: Source,
    repository: Path,
    *,
    model: str = "retrieval",
    recall: float | None = None,
    write: bool = True,
    step: Step = lambda description: lambda done: None,
) -> Tuned:
    """Measure the newest version of `model` on the held-out queries of `source` and choose its defaults for `recall`.

    The chosen defaults become those of the next version, which is otherwise the same and keeps the curve in its
    manifest; `write` False: nothing is written. `recall`: above 0 and below 1; None: the version's own target. Raises
    `BuilderError` where `source` is not what the version was exported from, where the version is damaged or of other
    operators, where its config.pbtxt cannot be read, for another `recall`, and for what `write_version` raises.
    """
    if recall is not None and not 0 < recall < 1:
        raise BuilderError(f"got {recall}, expected a share above 0 and below 1", where="recall")
    ranked = bool(versions(repository, model + RANKING_SUFFIX))
    if write:
        check_target(repository, model, ranked=ranked)
    path = find_version(repository, model)
    threads, instances = configured_processes(path / "config.pbtxt")
    done = step("Reading the newest version")
    manifest = verify(path)
    if manifest.operators != OPERATORS:
        raise BuilderError(
            f"is for operators {manifest.operators}, this builder has {OPERATORS}",
            where=str(path),
            remedy="Export it again: builder export",
        )
    ops.load()
    ranking = _ranking(repository, model, path, manifest) if ranked and write else None
    network: Any = torch.jit.load(str(path / MODEL_FILE), map_location="cpu")
    search = network.search
    _check_same(search, source, path)
    done(1.0)
    ids, schema = source.catalogue.ids, manifest.read_schema()
    target = manifest.recall.target if recall is None else recall
    truth = exact_truth(
        search,
        source.vectors,
        ids,
        source.queries,
        at=min(CALIBRATION_AT, schema.max_results),
        on_step=step("Searching exactly"),
    )
    done = step("Choosing reach and candidates")
    # A formula or a reranker orders candidates anew, rules pass some over: they keep those they have.
    reranks = manifest.index.bytes.get("reranker", 0) > 0
    chooses = reranks or manifest.value is not None or manifest.diversity is not None
    candidates = manifest.index.candidates if chooses else None
    found = calibrate(search, truth, target=target, results=schema.max_results, candidates=candidates)
    done(1.0)
    curve = _curve(search, truth, found, schema.max_results, step)
    chosen = next(p for p in curve if (p.reach, p.candidates) == (found.reach[0], found.candidates))
    measured = Recall(
        at=found.at, target=target, measured=found.recall, queries=found.queries, source=source.queries_from
    )
    if not write:
        return Tuned(None, chosen, curve, measured, chooses)
    step("Writing the next version")
    left = mean_results(search, network.diversity, truth.queries, schema.max_results)
    changed = _changed(manifest, found, measured, Curve(machine=_processor(), points=curve), search, left)
    version = write_version(
        repository,
        model,
        network,
        schema,
        lambda files: changed.model_copy(update={"files": files}),
        ranking=ranking,  # it reads none of the defaults
        threads=threads,
        instances=instances,
    )
    return Tuned(version, chosen, curve, measured, chooses)


def _ranking(repository: Path, model: str, version: Path, manifest: Manifest) -> torch.jit.ScriptModule:
    """The ranking network of the same snapshot. Raises `BuilderError` where there is none, or it is damaged."""
    path = find_version(repository, model + RANKING_SUFFIX, int(version.name))
    if verify(path).snapshot != manifest.snapshot:
        raise BuilderError(f"is of another snapshot than {version}", where=str(path), remedy="Export both again.")
    network: torch.jit.ScriptModule = torch.jit.load(str(path / MODEL_FILE), map_location="cpu")
    return network


def _check_same(search: Any, source: Source, version: Path) -> None:
    """Raise unless the version holds the items of `source`, with the same vectors: exact search is of the source's."""
    if not _holds(search, source):
        raise BuilderError(
            f"holds other items or vectors than {version}",
            where=source.name,
            remedy="Give what that version was exported from, or export this first: builder export",
        )


def _holds(search: Any, source: Source) -> bool:
    order = np.argsort(source.catalogue.ids)
    rows = search.item_rows.long()  # in this order
    if search.vectors.shape[1] != source.dims or not np.array_equal(search.ids[rows], source.catalogue.ids[order]):
        return False
    scales = search.scales.flatten()
    for start in range(0, len(order), COMPARED):
        part = rows[start : start + COMPARED]
        stored = search.vectors[part].float() * scales[part, None]
        given = torch.from_numpy(np.asarray(source.vectors[order[start : start + COMPARED]], dtype=np.float32))
        largest = given.abs().amax(1, keepdim=True)
        if ((stored - given).abs() > SAME * largest + NOTHING).any():
            return False
    return True


def _curve(search: Any, truth: Truth, chosen: Calibration, results: int, step: Step) -> tuple[Point, ...]:
    """Less and more reach with the chosen candidates, and fewer and more candidates with the chosen reach."""
    wanted = {(added, chosen.candidates) for added in REACH}
    wanted |= {(0.0, candidates_for(f, results, search.max_candidates)) for f in CANDIDATES}
    settings, reach = sorted(wanted), search.reach.clone()
    done = step("Measuring settings")
    points = []
    for added, candidates in settings:
        search.reach, search.candidates = reach + added, candidates
        recall, probes = float(measure_recall(search, truth).mean()), round(mean_probes(search, truth), 1)
        at = round(chosen.reach[0] + added, 3)
        points.append(Point(reach=at, candidates=candidates, probes=probes, recall=recall, milliseconds=np.inf))
        done(len(points) / len(settings) / 2)
    for turn in range(TURNS):  # the settings in turns, so that no one of them bears a busy moment of the machine
        for number, (added, candidates) in enumerate(settings):
            search.reach, search.candidates = reach + added, candidates
            least = min(points[number].milliseconds, median_milliseconds(search, truth.queries))
            points[number] = points[number].model_copy(update={"milliseconds": least})
        done((1 + (turn + 1) / TURNS) / 2)
    search.reach, search.candidates = reach, chosen.candidates
    return tuple(points)


def _processor() -> str:
    """The model of the processor, as Linux names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _changed(
    manifest: Manifest, found: Calibration, measured: Recall, curve: Curve, search: Any, left: float | None
) -> Manifest:
    index = manifest.index.model_copy(
        update={
            "probes": found.probes,
            "candidates": found.candidates,
            "exact_rows": found.exact_rows,
            "reach": found.reach,
            "mean_probes": found.mean_probes,
            "bytes": {**manifest.index.bytes, "reach": search.reach.nbytes},
            "mean_results": left,
        }
    )
    return manifest.model_copy(
        update={
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "silvertriton": installed_version("silvertriton"),
            "torch": torch.__version__,
            "index": index,
            "recall": measured,
            "curve": curve,
        }
    )
