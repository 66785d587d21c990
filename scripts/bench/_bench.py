"""What every benchmark shares: the project's own Python, the machine's name, the JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"


def use_project_python() -> None:
    """Start again with the project's Python if this is another one, and make its packages importable.

    Before torch is imported: tensors get large pages and threads wait passively, as where they are served
    (builder/serving/triton_model.py).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.executable != str(PYTHON) and PYTHON.exists():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    sys.path.insert(0, str(ROOT))


def vectors_and_queries(data: str, items: int, dims: int, queries: int) -> tuple[Any, Any]:
    """Vectors [items, dims] and queries [queries, dims], float32: "clustered" of low intrinsic dimension, or "uniform"
    on the sphere."""
    import numpy as np

    from builder.data.synthetic import synthetic_vectors

    if data == "clustered":
        return synthetic_vectors(items, dims, seed=0, queries=queries)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((items + queries, dims), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[queries:], rows[:queries]


def report(figures: dict[str, Any], ratios: dict[str, float], file: Path | None) -> dict[str, Any]:
    """Print the figures with machine and commit; write them to `file` if there is one. `ratios` stand at the top.
    Returns what was written."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    document = {"ratios": ratios, **figures, "machine": machine(), "commit": commit.stdout.strip()}
    text = json.dumps(document, indent=1)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")
    return document


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return f"{os.cpu_count()} cores, {platform.machine()}, {next(names, 'unknown CPU')}"
