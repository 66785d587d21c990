"""Several processes that train one run together, as torchrun starts them: one a GPU, or one a part of the CPU's cores.

    torchrun --nproc-per-node 2 -m builder train retrieval.yaml

Training is data parallel (Li et al. 2020, arXiv:2006.15704). A step's batch is divided by users: each process computes
the users of its share, and all of them the items of the whole batch and the same uniform negatives, so that the loss is
that of one process with the same batch (forward.py). Gradients are averaged, and every process keeps the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from builder import progress
from builder.errors import BuilderError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """The processes of a training, seen from one of them: the `rank`th of `size`, which computes on `device`."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is this one that writes files and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Of `count` examples those of this process; the shares of all are disjoint, cover all and differ by one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sums(self, *values: float) -> list[float]:
        """Each value summed over the processes, all of which must call this."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        result: list[float] = summed.tolist()
        return result

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the first process, in all of them. Others need not have its files."""
        if self.size == 1:
            return work()
        told: list[Any] = [work() if self.first else None]
        dist.broadcast_object_list(told)
        result: Result = told[0]
        return result

    def refuse_differences(self, checksum: int, what: str) -> None:
        """Raise BuilderError in all processes unless all have the same `checksum` of `what`."""
        if self.size == 1:
            return
        checksums = [0] * self.size
        dist.all_gather_object(checksums, checksum)
        others = [rank for rank, found in enumerate(checksums) if found != checksums[0]]
        if others:
            raise BuilderError(
                f"{what} differ from those of rank 0 in ranks {', '.join(map(str, others))}",
                where="torchrun",
                remedy="Give all hosts the same files.",
            )


def rank() -> int:
    """The number that torchrun gave this process, 0 without it."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def alone() -> Group:
    """One process, on the GPU if there is one."""
    return Group(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def processes() -> Iterator[Group]:
    """Join the processes that torchrun started, or train alone. All but the first are silent meanwhile.

    They talk over gloo on CPUs and over NCCL on GPUs, and leave together. Raises BuilderError for more processes on a
    host than it has GPUs.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield alone()
        return
    size, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise BuilderError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on a host of {torch.cuda.device_count()} GPUs",
                where="torchrun",
                remedy="Start one process a GPU: --nproc-per-node gpu",
            )
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        with progress.silent(rank() > 0):
            yield Group(device, rank(), size)
        dist.barrier()  # none leaves while another listens
    finally:
        dist.destroy_process_group()
