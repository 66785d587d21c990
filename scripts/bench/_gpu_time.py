"""Times on a GPU: medians of device events, CUDA graphs, and the kernels of a run as torch's profiler has them."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from builder.network.search import Search

REPEATS = 50


def captured(search: Search, given: list[Tensor]) -> Callable[[], object]:
    search(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        search(*given)
    return graph.replay


def time(runs: list[Callable[[], object]], repeats: int = REPEATS) -> float:
    """Median microseconds of the device over the runs in turn."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for repeat, (start, end) in enumerate(events):
        start.record()
        runs[repeat % len(runs)]()
        end.record()
    torch.cuda.synchronize()
    return round(1e3 * statistics.median(start.elapsed_time(end) for start, end in events), 2)


def profiled(runs: list[Callable[[], object]]) -> dict[str, Any]:
    """Kernels of a run with the microseconds of each (all its launches), launches, and how often the host waits."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for run in runs:
            run()
        torch.cuda.synchronize()
    kernels: dict[str, float] = collections.defaultdict(float)
    launches = waits = 0
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name if event.name.startswith("silvertriton_") else "of torch"
            kernels[name] += event.self_device_time_total / len(runs)
            launches += 1
        waits += event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    return {
        "kernels_microseconds": {name: round(microseconds, 2) for name, microseconds in kernels.items()},
        "launches": launches / len(runs),
        "waits": (waits - 1) / len(runs),  # this function's own is one for all runs
    }
