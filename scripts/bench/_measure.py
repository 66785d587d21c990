"""One system under load: its highest rate within the budget, its latency at light load, and who spends the time."""

from __future__ import annotations

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from _bench import ROOT

from client._messages import infer_request

if TYPE_CHECKING:
    from _systems import System

BUDGET_MS = 100.0  # p99
CLIENTS = 32  # that wait for their answers, to find how much a system can do
FRACTIONS = (0.4, 0.6, 0.75, 0.85, 0.95, 1.05)  # of that, rates of the sweep
BISECTIONS = 2
ANSWERED = 0.99  # of what is asked, or a rate does not count


def write_requests(folder: Path, candidates: int) -> Path:
    """The replayed requests as they travel, the same bytes for all systems."""
    with np.load(folder / "requests.npz") as stored:
        requests = {name: stored[name] for name in stored.files}
    described = json.loads((folder / "workload.json").read_text())
    rows = len(requests["exclude"])
    encoded = [encode(requests, described, row, 0, candidates) for row in range(rows // 2, rows)]
    return write_messages(folder / f"load-{candidates}.npz", encoded)


def write_messages(path: Path, encoded: list[bytes]) -> Path:
    """What the load generator sends."""
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in encoded])])
    np.savez(path, bytes=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets)
    return path


def encode(requests: dict[str, np.ndarray], described: dict[str, Any], row: int, probes: int, candidates: int) -> bytes:
    """A ModelInferRequest of one user; `probes` 0: the default, else all clusters are looked at."""
    inputs = {name: requests[name][row : row + 1] for name in described["users"]}
    inputs |= {name: requests[name][row : row + 1] for name in ("filter", "exclude")}
    inputs["task_weights"] = np.full((1, described["tasks"]), np.nan, np.float32)
    inputs["search"] = np.array([[probes, candidates]], np.int32)
    return bytes(infer_request("retrieval", "", inputs).SerializeToString())


class Load:
    """The load generator, in a process of its own."""

    def __init__(self, address: str, requests: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("_load.py")), address, str(requests)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with code {self.process.wait()}")
        return dict(json.loads(line))


def capacity(system: System, requests: Path, seconds: float) -> float:
    """Answers a second when there is always work."""
    with Load(system.address, requests) as load:
        load.ask(kind="closed", clients=CLIENTS, seconds=seconds / 4)  # warm
        return float(load.ask(kind="closed", clients=CLIENTS, seconds=seconds)["rate"])


def sweep(system: System, requests: Path, light_rate: float, seconds: float) -> dict[str, Any]:
    """Points from light load to past the budget, and between the last within and the first beyond it."""
    with Load(system.address, requests) as load:
        load.ask(kind="closed", clients=CLIENTS, seconds=seconds / 4)
        most, busy = closed(system, load, seconds / 2)
        system.stages()
        light = point(system, load, light_rate, max(seconds, min(15.0, 400 / light_rate)))
        light["stages"] = system.stages()
        points = [light]
        within, beyond, failures = light_rate, float("inf"), 0
        for fraction in FRACTIONS:
            points.append(point(system, load, fraction * most, seconds))
            if points[-1]["within"]:
                within, beyond, failures = fraction * most, float("inf"), 0
            else:  # once may be chance
                beyond, failures = min(beyond, fraction * most), failures + 1
                if failures == 2:
                    break
        for _ in range(BISECTIONS):
            middle = (within + (beyond if isfinite(beyond) else 1.3 * within)) / 2
            points.append(point(system, load, middle, seconds))
            if points[-1]["within"]:
                within = middle
            else:
                beyond = middle
    best = max((p for p in points if p["within"]), key=lambda p: p["rate"], default=None)
    return {
        "capacity": most,
        "busy_processor_ms": busy,
        "light": light,
        "points": points,
        "best": best,
        "memory_bytes": memory(system),
    }


def closed(system: System, load: Load, seconds: float) -> tuple[float, dict[str, float]]:
    """Answers a second when there is always work, and processor time of each by process, in milliseconds."""
    before = processor(system)
    found = load.ask(kind="closed", clients=CLIENTS, seconds=seconds)
    return float(found["rate"]), spent(before, processor(system), found, found["answered"])


def afford(system: System, folder: Path, rate: float, counts: list[int], seconds: float) -> list[dict[str, Any]]:
    """Points at one rate with ever more candidates, to the first beyond the budget."""
    points = []
    for count in counts:
        with Load(system.address, write_requests(folder, count)) as load:
            load.ask(kind="closed", clients=CLIENTS, seconds=seconds / 4)
            points.append({"candidates": count, **point(system, load, rate, seconds)})
        if not points[-1]["within"]:
            break
    return points


def point(system: System, load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """One rate. Processor time is by process, in milliseconds a request."""
    before = processor(system)
    found = load.ask(kind="open", rate=rate, seconds=seconds, seed=int(rate) + 1)
    used = spent(before, processor(system), found, max(1, found["answered"]))
    enough = found["answered"] >= ANSWERED * found["due"]
    within = enough and not found["failed"] and found["p99_ms"] <= BUDGET_MS
    return {"asked_rate": rate, **found, "within": within, "processor_ms": used}


def spent(
    before: dict[str, float], after: dict[str, float], found: dict[str, Any], answered: float
) -> dict[str, float]:
    """Processor time a request, in milliseconds, by process; that of the load generator leaves `found`."""
    used = {name: 1e3 * (after[name] - before[name]) / answered for name in before}
    return {**used, "load generator": 1e3 * found.pop("generator_s") / answered}


def processor(system: System) -> dict[str, float]:
    """Seconds of processor time that each part of a system has used."""
    return {name: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for name, pids in system.pids().items()}


def memory(system: System) -> dict[str, int]:
    """Resident bytes of each part, what is shared with others counted in part (Pss)."""
    found: dict[str, int] = {}
    for name, pids in system.pids().items():
        for pid in pids:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            line = next(line for line in text.splitlines() if line.startswith("Pss:"))
            found[name] = found.get(name, 0) + 1024 * int(line.split()[1])
    return found
