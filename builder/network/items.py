"""The feature values of items by row, carried in the artifact beside the index."""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn


class ItemFeatures(nn.Module):
    """Forward columns (`builder.index.forward`) as buffers.

    Of categories and tags `FEATURE__keys`, `FEATURE__codes` and so on: nothing served reads them; they say what an item
    of a snapshot was, to `builder inspect --item`. Of numbers and dates, in the order of the schema, `numbers.0.values`
    and so on: `used` are those that the value formula names.
    """

    def __init__(self, columns: dict[str, Tensor], used: Collection[str] = ()) -> None:
        super().__init__()
        self.used = tuple(name for name in number_names(columns) if name in used)
        self.reads = len(self.used) > 0
        self.numbers = nn.ModuleList(
            _NumberColumn(columns[f"{name}.values"], name in used) for name in number_names(columns)
        )
        for name, tensor in columns.items():
            if not name.endswith(".values"):
                self.register_buffer(name.replace(".", "__"), tensor)

    @torch.jit.export
    def read_numbers(self, rows: Tensor) -> list[Tensor]:
        """The `used` numbers of `rows [B, M] int32`, in the order of the schema: `[B, M] float64`, NaN where unknown.

        For a row of -1, which is no item, those of some item.
        """
        read: list[Tensor] = []
        if not self.reads:
            return read
        existing = rows.clamp(min=0).long()  # ONNX gathers by int64
        for column in self.numbers:
            if column.used:
                read += [column(existing)]
        return read


def used_numbers(items: ItemFeatures) -> ItemFeatures:
    """Of `items` only what `read_numbers` reads."""
    columns: dict[str, Tensor] = {}
    for column in items.numbers:
        if column.used:
            columns[f"{items.used[len(columns)]}.values"] = cast(Tensor, column.values)
    return ItemFeatures(columns, items.used)


class _NumberColumn(nn.Module):
    values: Tensor

    def __init__(self, values: Tensor, used: bool) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.used = used

    def forward(self, rows: Tensor) -> Tensor:
        # Indexing with a tensor takes several times as long.
        return torch.index_select(self.values, 0, rows.reshape(-1)).view(rows.size(0), rows.size(1))


def number_names(columns: dict[str, Tensor]) -> list[str]:
    """The numbers and dates among forward columns, in order."""
    return [name.removesuffix(".values") for name in columns if name.endswith(".values")]
