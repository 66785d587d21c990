"""The two towers: users and items as vectors of the same space (Yi et al. 2019, doi:10.1145/3298689.3346996).

A user is the sum of what is known: an embedding of each feature (the user's id is one) and the history pooled into one
vector (builder/network/history.py), projected; an item is the sum of an embedding of its id and of each feature.
Letters: B users, L history, D dims, N items, M items asked for.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.data.columns import CategoryColumn, Column, NumberColumn, TagsColumn
from builder.network.groups import TaskGroups
from builder.network.history import AttentionPooling, MeanPooling, newest
from builder.network.vocabulary import Vocabulary, vocabulary_of
from client.hashing import UNKNOWN_KEY

INITIAL_STD = 0.1
NUMBER_LIMIT = 5.0  # standard deviations; a served outlier must not drown the rest of the user
SQUARED = (1e-150, 1e150)  # squares of smaller and larger numbers leave the range of float64
SPARSE_ROWS = 500_000  # above, a step touches so few rows that gradients of them alone are faster


class CategoryEncoder(nn.Module):
    """Embedding of one key. Unknown keys, and the key that stands for none, share a row of their own."""

    def __init__(self, keys: NDArray[np.int64], dims: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary_of(keys, UNKNOWN_KEY)
        self.embedding = table(len(self.vocabulary), dims)

    def forward(self, keys: Tensor) -> Tensor:
        """`keys [B, 1] int64` -> `[B, D]`."""
        embedded: Tensor = self.embedding(self.vocabulary(keys.squeeze(1)))
        return embedded


class NumberEncoder(nn.Module):
    """A standardised number times a vector; a missing one has a vector of its own."""

    mean: Tensor
    scale: Tensor

    def __init__(self, values: NDArray[np.float64], dims: int) -> None:
        super().__init__()
        self.limit = NUMBER_LIMIT  # TorchScript reads no global
        mean, spread = _mean_and_spread(values[~np.isnan(values)])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(spread if spread > 0 else 1.0, dtype=torch.float64))
        self.project = nn.Linear(2, dims, bias=False)
        nn.init.normal_(self.project.weight, std=INITIAL_STD)

    def forward(self, values: Tensor) -> Tensor:
        """`values [B, 1]` float, NaN where missing -> `[B, D]`."""
        missing = torch.isnan(values)
        standard = ((values.to(torch.float64) - self.mean) / self.scale).clamp(-self.limit, self.limit)
        standard = torch.where(missing, torch.zeros_like(standard), standard)
        inputs = torch.cat([standard, missing.to(torch.float64)], dim=1)  # [B, 2]
        projected: Tensor = self.project(inputs.to(self.project.weight.dtype))
        return projected


def _mean_and_spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation, 0 of none."""
    if not len(values):
        return 0.0, 0.0
    largest = np.abs(values).max()
    unit = 1.0 if largest == 0 or SQUARED[0] < largest < SQUARED[1] else largest
    return float((values / unit).mean() * unit), float((values / unit).std() * unit)


class UserTower(nn.Module):
    """What a user sends -> a unit vector `[B, D]`, or `[B, G, D]`: one for each of G `groups` of tasks.

    `columns`: the users' features in the order of the schema, which give vocabularies and scales. `ids` [N] int64: item
    ids, ascending. `pooling`: of histories; the mean if None. A user of whom nothing is known gets a vector too, the
    same for all of them. With `groups`, what is known of a user has one sum, of which each group's head, a linear map,
    makes a vector; the heads begin alike. Scriptable; holds no device.
    """

    def __init__(
        self,
        columns: Sequence[CategoryColumn | NumberColumn],
        ids: NDArray[np.int64],
        *,
        dims: int,
        history_length: int,
        pooling: MeanPooling | AttentionPooling | None = None,
        groups: TaskGroups | None = None,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.encoders = nn.ModuleList(
            CategoryEncoder(column.keys, dims)
            if isinstance(column, CategoryColumn)
            else NumberEncoder(column.values, dims)
            for column in columns
        )
        self.items = Vocabulary(ids if history_length else ids[:0])
        self.history = table(len(self.items), dims)
        self.pooling = MeanPooling() if pooling is None else pooling
        self.project = nn.Linear(dims, dims)
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        if groups is not None:
            self.groups = groups
            self.heads = nn.Linear(dims, groups.count * dims)
            with torch.no_grad():
                self.heads.weight.copy_(torch.eye(dims).repeat(groups.count, 1))
            nn.init.zeros_(self.heads.bias)

    def forward(self, features: list[Tensor], history: Tensor) -> Tensor:
        """`features`: one `[B, 1]` a feature, int64 keys or floats; `history [B, L] int64` item ids -> `[B, D]`
        or `[B, G, D]`.

        Of a history the newest (rightmost) `history_length` entries that are no padding (-1) are read; ids that are
        not in the catalogue are left out of them.
        """
        slots = self.items(newest(history, self.history_length))  # [B, L]
        return self.combine(features, self.pooling(slots, self.history.weight))

    def query(self, features: list[Tensor], history: Tensor) -> Tensor:
        """As forward, with groups their vectors weighed as the artifact weighs them by itself: always `[B, D]`."""
        vectors: Tensor = self(features, history)
        return self.groups.default(vectors) if hasattr(self, "groups") else vectors

    def encode(self, features: list[Tensor], history: Tensor, offsets: Tensor) -> Tensor:
        """As forward, for histories behind one another, as training has them.

        `history [P] int64` positions in the catalogue, row b's from `offsets[b]` to `offsets[b + 1]`, none longer than
        `history_length`.
        """
        return self.combine(features, self.pooling.behind_one_another(history + 1, offsets, self.history))

    def combine(self, features: list[Tensor], pooled: Tensor) -> Tensor:
        """`features` as in forward, `pooled [B, D]` history -> as forward."""
        user = self.project(pooled)
        for i, encoder in enumerate(self.encoders):
            user = user + encoder(features[i])
        if hasattr(self, "heads"):
            vectors = self.heads(user).view(user.size(0), self.groups.count, user.size(1))
            return F.normalize(vectors, dim=2)
        return F.normalize(user, dim=1)


class ItemCategory(nn.Module):
    """Embedding of each item's category."""

    slots: Tensor

    def __init__(self, keys: NDArray[np.int64], dims: int) -> None:
        super().__init__()
        vocabulary = vocabulary_of(keys, UNKNOWN_KEY)
        self.register_buffer("slots", vocabulary(torch.from_numpy(keys)).to(torch.int32), persistent=False)
        self.embedding = table(len(vocabulary), dims)

    def forward(self, items: Tensor) -> Tensor:
        """`items [M] int64` positions -> `[M, D]`."""
        embedded: Tensor = self.embedding(self.slots[items].long())
        return embedded


class ItemTags(nn.Module):
    """Mean embedding of each item's tags; zero without any."""

    offsets: Tensor
    slots: Tensor

    def __init__(self, offsets: NDArray[np.int64], keys: NDArray[np.int64], dims: int) -> None:
        super().__init__()
        vocabulary = vocabulary_of(keys, UNKNOWN_KEY)
        self.register_buffer("offsets", torch.from_numpy(offsets), persistent=False)
        self.register_buffer("slots", vocabulary(torch.from_numpy(keys)).to(torch.int32), persistent=False)
        self.embedding = table(len(vocabulary), dims)

    def forward(self, items: Tensor) -> Tensor:
        """`items [M] int64` positions -> `[M, D]`."""
        starts = self.offsets[items]
        lengths = self.offsets[items + 1] - starts
        ends = lengths.cumsum(0)
        shifts = torch.repeat_interleave(starts - ends + lengths, lengths)
        slots = self.slots[torch.arange(shifts.size(0), device=items.device) + shifts].long()
        return F.embedding_bag(slots, self.embedding.weight, ends - lengths, mode="mean", sparse=self.embedding.sparse)


class ItemNumber(nn.Module):
    """Each item's number or date, standardised."""

    values: Tensor

    def __init__(self, values: NDArray[np.float64], dims: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        self.encoder = NumberEncoder(values, dims)

    def forward(self, items: Tensor) -> Tensor:
        """`items [M] int64` positions -> `[M, D]`."""
        encoded: Tensor = self.encoder(self.values[items].unsqueeze(1))
        return encoded


class ItemTower(nn.Module):
    """Items of a catalogue -> vectors. Used offline only: what is served are the vectors.

    `columns`: item features, all `count` long. A category that differs for every item is its id again and gets no
    embedding of its own. `ids`: the table of a user tower's history, to share it (row 0 is nobody's, item i has row
    i + 1); what is learned of an item as a target then holds for it in a history and the other way round. `unit`: all
    vectors have length 1, else as much as is learned.
    """

    def __init__(
        self, columns: Sequence[Column], count: int, *, dims: int, ids: nn.Embedding | None = None, unit: bool = True
    ) -> None:
        super().__init__()
        self.unit = unit
        self.ids = table(count + 1, dims) if ids is None else ids
        self.encoders = item_encoders(columns, count, dims)

    def __len__(self) -> int:
        return self.ids.num_embeddings - 1

    def forward(self, items: Tensor) -> Tensor:
        """`items [M] int64` positions in the catalogue -> `[M, D]`."""
        item: Tensor = self.ids(items + 1)
        for encoder in self.encoders:
            item = item + encoder(items)
        return F.normalize(item, dim=1) if self.unit else item

    @torch.no_grad()
    def vectors(self, chunk: int = 65_536) -> NDArray[np.float32]:
        """All items' vectors `[N, D] float32`, computed in chunks."""
        device = self.ids.weight.device
        result = np.empty((len(self), self.ids.embedding_dim), np.float32)
        for start in range(0, len(self), chunk):
            items = torch.arange(start, min(start + chunk, len(self)), device=device)
            result[start : start + len(items)] = self(items).cpu().numpy()
        return result


def table(rows: int, dims: int) -> nn.Embedding:
    """An embedding table; its gradients are sparse where it is large."""
    embedding = nn.Embedding(rows, dims, sparse=rows > SPARSE_ROWS)
    nn.init.normal_(embedding.weight, std=INITIAL_STD)
    return embedding


def item_encoders(columns: Sequence[Column], count: int, dims: int) -> nn.ModuleList:
    """One encoder a feature, `[M] int64` positions -> `[M, D]`; none for a category that names each of the items."""
    return nn.ModuleList(_item_encoder(column, dims) for column in columns if not _names_each_item(column, count))


def _item_encoder(column: Column, dims: int) -> nn.Module:
    if isinstance(column, CategoryColumn):
        return ItemCategory(column.keys, dims)
    if isinstance(column, TagsColumn):
        return ItemTags(column.offsets, column.keys, dims)
    return ItemNumber(column.values, dims)


def _names_each_item(column: Column, count: int) -> bool:
    return isinstance(column, CategoryColumn) and len(np.unique(column.keys)) == count
