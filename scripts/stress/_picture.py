"""Draws what `soak` saw: memory, and latency of calls for one user, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"server": "#4c72b0", "models": "#dd8452", "client": "#55a868"}


def draw(samples: list[dict[str, float]], kills: list[dict[str, Any]], path: Path) -> None:
    """`samples`: time in seconds, memory in bytes, latencies in seconds. `kills`: those of the report."""
    figure, (memory, latency) = plt.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    minutes = [sample["time"] / 60 for sample in samples]
    for name, colour in COLOURS.items():
        memory.plot(minutes, [sample[name] / 1e6 for sample in samples], color=colour, label=name, linewidth=1)
    memory.set(ylabel="memory held, MB", ylim=(0, None))
    for percent, colour in (("p50", "#4c72b0"), ("p99", "#c44e52")):
        times = [1e3 * sample[percent] for sample in samples]
        latency.plot(minutes, times, color=colour, label=percent, linewidth=1)
    latency.set(ylabel="one user under load, ms", xlabel="minutes", yscale="log")
    for axis in (memory, latency):
        for number, kill in enumerate(kills):
            label = "kill" if number == 0 else None
            axis.axvline(kill["at"] / 60, color="#888888", linestyle=":", linewidth=1, label=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110)
