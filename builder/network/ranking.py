"""The second served network of a snapshot: it scores items that are given, as the first scores those that it finds.

Everything that makes a score is the retrieval network's own: tower, vectors, reranker, value model, item numbers.
Letters: B requests, D dims, N items, R rows, I given items, T tasks. Inputs and outputs: docs/wire-contract.md.
"""

import torch
from torch import Tensor, nn

from builder.network.items import used_numbers
from builder.network.pipeline import Pipeline, source_of, user_inputs, user_status
from builder.network.search import first_status, flag
from builder.network.vocabulary import Vocabulary
from client.schema import Schema, Status

RANKING_INPUTS = ("items", "task_weights")  # beside those of the user
RANKING_OUTPUTS = ("scores", "task_scores", "known", "status")


class Ranking(nn.Module):
    """User tower, item vectors, reranker and value model of a `Pipeline`; the tensors are the pipeline's.

    `forward` is defined on export, from `ranking_source`.
    """

    vectors: Tensor
    scales: Tensor
    item_rows: Tensor
    row_ids: Tensor

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        search = pipeline.search
        if hasattr(pipeline, "tower"):
            self.tower = pipeline.tower
        if hasattr(pipeline, "groups"):
            self.groups = pipeline.groups
        self.register_buffer("vectors", search.vectors)  # [R, D] float16
        self.register_buffer("scales", search.scales)  # [NB, 32] float32
        self.register_buffer("item_rows", search.item_rows)  # [N] int32, by ascending id
        self.register_buffer("row_ids", search.ids)  # [R] int64
        self.ids = Vocabulary(search.ids[search.item_rows].numpy())
        self.rerank = pipeline.rerank
        self.value = pipeline.value
        self.items = used_numbers(pipeline.items)
        self.at_once = search.max_candidates  # so that a long list takes no more memory than a search

    @torch.jit.export
    def check_user(self, features: list[Tensor], history: Tensor) -> Tensor:
        """See `user_status`."""
        return user_status(features, history)

    @torch.jit.export
    def rank(
        self, query: Tensor, history: Tensor, user_status: Tensor, items: Tensor, task_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`query [B, D]` (`[B, G, D]` with groups), `history [B, L] int64`, `user_status [B] int32`, `items [B, I]
        int64` ids, -1 for none, `task_weights [B, T]` -> scores `[B, I]`, task scores `[B, I, T]`, known `[B, I]
        int32`, status `[B, 1] int32`.

        Where an item is not known, or the status is not 0: -inf, and 0 of `known`.
        """
        sought = query  # [B, D]
        if hasattr(self, "groups"):
            sought = self.groups.default(query)
        status = first_status(user_status, flag(~sought.isfinite().all(1), Status.QUERY.value))
        weights, status = self.value.resolve_weights(task_weights, status)  # [B, T], [B]
        status = first_status(status, flag((items < -1).any(1), Status.ITEMS.value))
        slots = self.ids(items)  # [B, I], 0 where unknown
        found = (slots > 0) & (status == 0).unsqueeze(1)
        rows = torch.where(found, self.item_rows[(slots - 1).clamp(min=0)], -1)  # [B, I] int32
        values: list[Tensor] = []
        tasks: list[Tensor] = []
        for part in self.parts(rows):
            part = part.contiguous()
            retrieved = torch.ops.silvertriton.rescore(sought.contiguous(), self.vectors, self.scales, part)
            task_scores = self.rerank(
                query, history, part, retrieved, self.vectors, self.scales, self.row_ids, self.item_rows
            )
            values.append(self.value(task_scores, self.items.read_numbers(part), weights))
            tasks.append(task_scores)
        scores = torch.where(found, torch.cat(values, 1), float("-inf"))
        task_scores = torch.where(found.unsqueeze(2), torch.cat(tasks, 1), float("-inf"))
        return scores, task_scores, found.to(torch.int32), status.unsqueeze(1)

    def parts(self, rows: Tensor) -> list[Tensor]:
        """`rows [B, I]` in parts `[B, I']` that are scored one after the other."""
        return list(rows.split(self.at_once, 1))


def ranking_names(schema: Schema) -> tuple[str, ...]:
    """The inputs of a ranking model, in the order of forward's arguments and of config.pbtxt."""
    return (*user_inputs(schema), *RANKING_INPUTS)


def ranking_source(schema: Schema, *, own_tower: bool) -> str:
    """TorchScript source of `Ranking.forward`, as `forward_source` is of the pipeline's."""
    status = "items.new_zeros(items.size(0)).int()"
    return source_of(schema, "rank", RANKING_INPUTS, own_tower=own_tower, status=status)
