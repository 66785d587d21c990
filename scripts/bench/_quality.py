"""What more candidates are worth: Recall@20 of a trained run's test users by the number that is reranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.evaluation.metrics import recall
from builder.export.manifest import MODEL_FILE
from builder.training.run import load

CANDIDATES = (100, 200, 500, 1_000, 2_000, 5_000, 10_000)
AT, USERS, BATCH = 20, 4_000, 16


def quality(folder: Path, run_folder: Path) -> dict[str, float]:
    """Mean Recall@20 by candidates, of the network in this process; kept in quality.json."""
    path = folder / "quality.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    run = load(run_folder)
    asking = run.held_out("test", sample=USERS)
    network: Any = torch.jit.load(str(folder / "unified" / "retrieval" / "1" / MODEL_FILE)).eval()
    names = [argument.name for argument in network.forward.schema.arguments[1:]]
    width = int(asking.exclude.lengths.max())
    given = {**asking.features, "history": asking.history, "exclude": asking.exclude.padded(width)}
    given |= {"filter": np.zeros((len(asking), 2), np.int64)}
    given["task_weights"] = np.full((len(asking), len(run.config.tasks)), np.nan, np.float32)
    found: dict[str, float] = {}
    for count in CANDIDATES:
        if count > min(network.search.max_candidates, len(run.catalogue)):
            break
        given["search"] = np.tile(np.array([[0, count]], np.int32), (len(asking), 1))
        parts = []
        for start in range(0, len(asking), BATCH):
            inputs = [torch.from_numpy(given[name][start : start + BATCH]) for name in names]
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                parts.append(network.forward(*inputs)[0][:, :AT].numpy())
        found[str(count)] = float(np.nanmean(recall(np.concatenate(parts), asking.targets)))
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found
