"""The forward pass of a training step as one module: what several processes, torch.compile and autocast wrap."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from builder import progress
from builder.config import Training
from builder.network.towers import ItemTower, UserTower
from builder.training.distributed import Group
from builder.training.loss import sampled_softmax


class TrainingLoss(nn.Module):
    """From examples to their loss. `log_expected [N]`: log of `expected_counts`.

    Negatives of every row are all other positives of the step's whole batch and the uniform draws, whichever process
    computes the row: positions of items are known to all processes, and each computes the vectors of all of them. Only
    users are divided. The cost is that item towers run once a process; they are sums of embeddings, while users may
    need attention, and the products of users and items are divided with the users.
    """

    log_expected: Tensor

    def __init__(self, user_tower: UserTower, item_tower: ItemTower, log_expected: Tensor, temperature: float) -> None:
        super().__init__()
        self.user_tower, self.item_tower = user_tower, item_tower
        self.temperature = temperature
        self.register_buffer("log_expected", log_expected, persistent=False)

    def forward(
        self,
        features: list[Tensor],
        history: Tensor,
        offsets: Tensor,
        labels: Tensor,
        positions: Tensor,
        first: int,
        batch: int,
    ) -> Tensor:
        """The summed loss of b users by `batch`, the users of all processes: a scalar.

        `features`, `history` and `offsets` of b users as `UserTower.encode` takes them; `labels [b, T] bool`: their
        tasks; `positions [batch + S] int64`: the batch's positives, of which row i of this process has number `first` +
        i, then the negatives. Each vector of a user has a loss of its own, over the positives of its group of tasks.
        """
        users = self.user_tower.encode(features, history, offsets)
        items = self.item_tower(positions)
        log_expected = self.log_expected[positions]
        if users.dim() == 2:
            return sampled_softmax(users, items, positions, log_expected, self.temperature, first=first) / batch
        counted = self.user_tower.groups.by_group(labels.to(users.dtype)) > 0  # [b, G]
        summed = users.new_zeros(())
        for of_group, rows in zip(users.unbind(1), counted.unbind(1), strict=True):
            summed = summed + sampled_softmax(
                of_group, items, positions, log_expected, self.temperature, first=first, counted=rows
            )
        return summed / batch


def prepared(loss: TrainingLoss, settings: Training, group: Group) -> nn.Module:
    """`loss` on the device of `group`, compiled if the settings say so, its gradients averaged over the processes."""
    loss.to(group.device)
    if settings.compile and on_gpu(group.device, "training.compile"):
        loss.compile(dynamic=True)
    if group.size == 1:
        return loss
    # Buffers are the same everywhere and never change. The argument that says so has another name from torch 2.13 on.
    known = signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False,
        "device_ids": None if group.device.type == "cpu" else [group.device],
    }
    return DistributedDataParallel(loss, gradient_as_bucket_view=True, **options)


def precision(settings: Training, device: torch.device) -> AbstractContextManager[None]:
    """Within it a step computes as the settings say: products of matrices in bfloat16 where precision is mixed.

    Weights, their gradients and all that autocast counts as delicate (norms, softmax, losses) stay float32. Evaluation
    is float32 throughout. bfloat16 has the range of float32: no scaling of gradients is needed (Micikevicius et al.
    2018, arXiv:1710.03740, for float16; Kalamkar et al. 2019, arXiv:1905.12322).
    """
    if not settings.mixed_precision or not on_gpu(device, "training.mixed_precision"):
        return nullcontext()
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        progress.say("training.mixed_precision is off: this GPU has no bfloat16 (compute capability 8.0 or newer has)")
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def on_gpu(device: torch.device, setting: str) -> bool:
    """Whether what speeds up GPUs is on; elsewhere it is off, and said to be."""
    if device.type == "cuda":
        return True
    progress.say(f"{setting} is of GPUs: off on {device.type}")
    return False


def with_dense_gradients(towers: nn.Module) -> None:
    """Large tables get dense gradients too: NCCL cannot sum sparse ones."""
    for module in towers.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
