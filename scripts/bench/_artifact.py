"""What benchmarks of an exported network share: exporting it, and running it in this process as the server does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _bench import ROOT

from builder import ops
from builder.export.manifest import MODEL_FILE


def export(folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of `builder export`.

    The peak is the kernel's high-water mark, read until the end. What wait4 tells of a child would count this process
    too, whose memory the child shares until it runs its own program.
    """
    command = [
        sys.executable,
        "-m",
        "builder",
        "export",
        folder / "retrieval.yaml",
        "--repository",
        folder / "repository",
    ]
    started, peak = time.monotonic(), 0
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=sys.stderr)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
        time.sleep(0.05)
    if process.returncode:
        sys.exit("the export failed")
    return time.monotonic() - started, peak


class InProcess:
    """The exported network in this process, run as the server runs it, with neutral inputs beside the queries."""

    def __init__(self, repository: Path) -> None:
        ops.load()
        self.network = torch.jit.load(str(repository / "retrieval" / "1" / MODEL_FILE)).eval()
        self.forward = self.network.forward
        self.names = [argument.name for argument in self.forward.schema.arguments[1:]]

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        inputs = [torch.from_numpy(array) for array in neutral(self.names, queries)]
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return np.asarray(self.forward(*inputs)[0].numpy())


def neutral(names: list[str], queries: np.ndarray) -> list[np.ndarray]:
    """The inputs of an artifact without a tower that ask for nothing but `queries`."""
    rows = len(queries)
    known = {
        "query": queries,
        "filter": np.zeros((rows, 16), dtype=np.int64),
        "exclude": np.full((rows, 8), -1, dtype=np.int64),
        "task_weights": np.full((rows, 1), np.nan, dtype=np.float32),
        "search": np.zeros((rows, 2), dtype=np.int32),
    }
    return [known[name] for name in names]


def seconds(network: InProcess, query: np.ndarray) -> float:
    started = time.perf_counter()
    network(query)
    return time.perf_counter() - started
