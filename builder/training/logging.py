"""Figures of a run for TensorBoard: `tensorboard --logdir runs` shows them while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_S = 10


class RunLog:
    """Scalars in the event files of a folder; None: nowhere.

    The folder is not touched before the first figure. A run that goes on gives an earlier step than was written last:
    TensorBoard then drops what the interrupted one wrote from that step on, so that no figure stands there twice.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, part: str, step: int, figures: dict[str, float]) -> None:
        """Figures of a `part` of the training (its own curves, and its own steps) at `step`, which never falls."""
        if self._folder is None:
            return
        if part not in self._writers:
            # Imported here: a process that writes nothing need not wait for it.
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder / part
            self._writers[part] = SummaryWriter(str(folder), purge_step=step, flush_secs=FLUSH_S)
        for name, value in figures.items():
            self._writers[part].add_scalar(name, value, step)

    def flush(self) -> None:
        """Everything is on disk after this."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
