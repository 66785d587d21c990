"""What a process does that torchrun started for a test.

python -m tests.builder.training.processes talk FOLDER
python -m tests.builder.training.processes train FOLDER CONFIG OUT CHECKPOINTS

talk: what the processes tell each other goes to FOLDER/RANK.json. train: train, or go on, with a checkpoint after every
step, and fail after CHECKPOINTS of them; FOLDER/RANK.json then tells whose users this process computed, step by step,
and which files below OUT it opened to write. OUT is of the first process; others have a folder of another name, as on
another host.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from builder.config import Config
from builder.errors import BuilderError
from builder.training import batches, checkpoint, distributed, run, trainer


def talk(folder: Path) -> None:
    with distributed.processes() as group:
        told: dict[str, Any] = {
            "device": group.device.type,
            "sums": group.sums(1.5, group.rank + 1),
            "from_first": group.from_first(lambda: {"rank": group.rank, "tensor": torch.arange(2)})["rank"],
            "share": [group.share(count).indices(count)[:2] for count in (0, 1, 7)],
        }
        group.refuse_differences(7, "numbers")
        try:
            group.refuse_differences(group.rank, "numbers")
        except BuilderError as error:
            told["refused"] = str(error)
    (folder / f"{group.rank}.json").write_text(json.dumps(told))


def train(folder: Path, config: Path, out: Path, checkpoints: int) -> None:
    written: set[str] = set()
    drawn: list[list[int]] = []
    at, save = batches.Batches.at, checkpoint.save
    saves = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"):
            path = Path(os.fsdecode(arguments[0])).resolve()
            if out in path.parents:
                written.add(str(path.relative_to(out)))

    def recorded(self: Any, positions: torch.Tensor, generator: torch.Generator, share: slice) -> batches.Batch:
        drawn.append(positions[share].tolist())
        return at(self, positions, generator, share)

    def failing_save(state: dict[str, Any], path: Path) -> None:
        nonlocal saves
        save(state, path)
        saves += path.name == run.CHECKPOINT
        if saves == checkpoints:
            raise SystemExit(3)

    sys.addaudithook(hook)
    batches.Batches.at = recorded  # type: ignore[method-assign,assignment]
    trainer.CHECKPOINT_S = 0.0
    run.save = failing_save  # type: ignore[attr-defined]
    run.train(Config.load(config), out, True)
    (folder / f"{distributed.rank()}.json").write_text(json.dumps({"drawn": drawn, "written": sorted(written)}))


if __name__ == "__main__":
    if sys.argv[1] == "talk":
        talk(Path(sys.argv[2]))
    else:
        out = Path(sys.argv[4]).resolve()
        mine = out if distributed.rank() == 0 else out.with_name(out.name + "-elsewhere")
        train(Path(sys.argv[2]), Path(sys.argv[3]), mine, int(sys.argv[5]))
