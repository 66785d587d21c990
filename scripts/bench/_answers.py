"""Whether the systems of a workload give the same answers, before anything is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from _measure import encode
from tritonclient.grpc import service_pb2

from builder.export.manifest import MODEL_FILE, read_manifest
from client._messages import SERVICE, infer_answer

CHECKED = 64  # requests
OVERLAP = 0.99
# Of how many candidates answers are compared where all look at everything. The one model chooses candidates by codes of
# fewer dims: of so many as are returned some at the edge are others, of more none that count.
COMPARED = 10_000


def compared(folder: Path) -> int:
    """How many candidates answers are compared with."""
    artifact = folder / "unified" / "retrieval" / "1"
    manifest = read_manifest(artifact)
    return min(COMPARED, manifest.index.items, manifest.read_schema().max_candidates)


def exact_answers(folder: Path, candidates: int, probes: int | None = None) -> list[np.ndarray]:
    """Item ids of the unified network in this process, all clusters looked at (or the default, with `probes` 0)."""
    requests, described = read_requests(folder)
    if probes is None:
        probes = read_manifest(folder / "unified" / "retrieval" / "1").index.clusters
    network: Any = torch.jit.load(str(folder / "unified" / "retrieval" / "1" / MODEL_FILE)).eval()
    names = [argument.name for argument in network.forward.schema.arguments[1:]]
    found = []
    for row in rows(requests):
        given = {name: requests[name][row : row + 1] for name in requests}
        given["task_weights"] = np.full((1, described["tasks"]), np.nan, np.float32)
        given["search"] = np.array([[probes, candidates]], np.int32)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            ids = network.forward(*(torch.from_numpy(given[name]) for name in names))[0][0].numpy()
        found.append(ids[ids >= 0])
    return found


def served_answers(address: str, folder: Path, candidates: int, probes: int) -> list[np.ndarray]:
    """Item ids that a system answers; `probes` 0: with its settings, else all lists are looked at."""
    requests, described = read_requests(folder)
    found = []
    with grpc.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),)) as channel:
        infer = channel.unary_unary(f"{SERVICE}ModelInfer")
        for row in rows(requests):
            message = infer(encode(requests, described, row, probes, candidates), timeout=60)
            answer = infer_answer(service_pb2.ModelInferResponse.FromString(message), address)
            ids = answer.outputs["item_ids"][0]
            found.append(ids[: int(answer.outputs["count"][0, 0])])
    return found


def overlap(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Mean part of the expected ids that were found."""
    parts = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, expected, strict=True) if len(b)]
    return float(np.mean(parts))


def read_requests(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(folder / "requests.npz") as stored:
        return {name: stored[name] for name in stored.files}, json.loads((folder / "workload.json").read_text())


def rows(requests: dict[str, np.ndarray]) -> range:
    """Of the replayed requests the first ones."""
    half = len(requests["exclude"]) // 2
    return range(half, half + min(CHECKED, half))
