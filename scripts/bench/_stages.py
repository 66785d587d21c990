"""Where the unified network's time goes: its modules called one after the other in this process, on one thread."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.export.manifest import MODEL_FILE

REQUESTS = 128


def unified_stages(folder: Path, candidates: int) -> dict[str, float]:
    """Median milliseconds of tower, search (with filter and exclusions), reranker, and value and selection."""
    described = json.loads((folder / "workload.json").read_text())
    network: Any = torch.jit.load(str(folder / "unified" / "retrieval" / "1" / MODEL_FILE)).eval()
    with np.load(folder / "requests.npz") as stored:
        requests = {name: torch.from_numpy(stored[name]) for name in stored.files}
    half = len(requests["exclude"]) // 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    try:
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            for row in range(half, half + min(half, REQUESTS)):
                given = {name: values[row : row + 1] for name, values in requests.items()}
                for name, seconds in _one(network, given, described, candidates).items():
                    times.setdefault(name, []).append(seconds)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def _one(network: Any, given: dict[str, Any], described: dict[str, Any], candidates: int) -> dict[str, float]:
    features = [given[name] for name in described["users"] if name != "history"]
    history = given.get("history", torch.full((1, 1), -1))
    marks = [time.perf_counter()]
    query = network.tower(features, history)
    marks.append(time.perf_counter())
    limits, status = torch.tensor([[0, candidates]], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    rows, ids, retrieved, _, status = network.search(query, given["filter"], given["exclude"], limits, status)
    marks.append(time.perf_counter())
    index = network.search
    scores = network.rerank(query, history, rows, retrieved, index.vectors, index.scales, index.ids, index.item_rows)
    marks.append(time.perf_counter())
    weights, status = network.value.resolve_weights(torch.full((1, described["tasks"]), torch.nan), status)
    value = network.value(scores, network.items.read_numbers(rows), weights)
    torch.ops.silvertriton.select(value, ids, scores, status, network.results)
    marks.append(time.perf_counter())
    names = ("tower", "filter and search", "reranker", "value and selection")
    return dict(zip(names, np.diff(marks), strict=True))
