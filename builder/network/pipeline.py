"""The whole served forward pass, in call order. What this module computes is what a request gets.

Letters: B requests, D dims, M max candidates, T tasks, K results. Inputs and outputs: docs/wire-contract.md.
"""

import torch
from torch import Tensor, nn

from builder.network.diversity import DiverseSelection
from builder.network.groups import GroupReranking, GroupScores, TaskGroups
from builder.network.items import ItemFeatures
from builder.network.rerank import Reranking, RetrievalScore
from builder.network.search import Search, first_status, flag
from builder.network.value import ValueModel
from client.schema import Schema, Status

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
INPUTS = ("filter", "exclude", "task_weights", "search")  # beside those of the user
OUTPUT_NAMES = ("item_ids", "scores", "task_scores", "count", "status", "stats")


class Pipeline(nn.Module):
    """User tower, filters, index, reranker, value model and rules of selection as one network.

    `tower` is a `UserTower` (takes the list of user features and the history), a TorchScript module of the user's own
    (takes them as named arguments), or None (the request carries the query vector). `groups`: those of a tower with
    several vectors of a user. `forward` differs in its arguments from schema to schema and is therefore defined on
    export, from `forward_source`.
    """

    def __init__(
        self,
        tower: nn.Module | None,
        search: Search,
        rerank: Reranking | RetrievalScore | GroupReranking | GroupScores,
        value: ValueModel,
        items: ItemFeatures,
        *,
        results: int,
        diversity: DiverseSelection | None = None,
        groups: TaskGroups | None = None,
    ) -> None:
        super().__init__()
        if tower is not None:
            self.tower = tower
        if groups is not None:
            self.groups = groups
        self.search = search
        self.rerank = rerank
        self.value = value
        self.items = items
        self.results = results
        self.diversity = diversity

    @torch.jit.export
    def check_user(self, features: list[Tensor], history: Tensor) -> Tensor:
        """See `user_status`."""
        return user_status(features, history)

    @torch.jit.export
    def retrieve(
        self,
        query: Tensor,
        history: Tensor,
        user_status: Tensor,
        filter: Tensor,
        exclude: Tensor,
        task_weights: Tensor,
        search: Tensor,
    ) -> Outputs:
        """From the query vector `[B, D]` (`[B, G, D]` with groups) to the results; `user_status [B] int32` is carried
        into the status."""
        weights, status = self.value.resolve_weights(task_weights, user_status)  # [B, T], [B]
        sought = query  # [B, D]
        if hasattr(self, "groups"):
            sought = self.groups(query, weights)
        rows, ids, retrieved, stats, status = self.search(sought, filter, exclude, search, status)  # [B, M]
        index = self.search
        task_scores = self.rerank(
            query, history, rows, retrieved, index.vectors, index.scales, index.ids, index.item_rows
        )  # [B, M, T]
        value = self.value(task_scores, self.items.read_numbers(rows), weights)  # [B, M]
        if self.diversity is None:
            chosen = torch.ops.silvertriton.select(value, ids, task_scores, status, self.results)
        else:
            chosen = self.diversity(value, ids, rows, task_scores, status, self.search.vectors, self.results)
        item_ids, scores, tasks, count = chosen  # [B, K], [B, K], [B, K, T], [B]
        return item_ids, scores, tasks, count.unsqueeze(1), status.unsqueeze(1), stats


def user_status(features: list[Tensor], history: Tensor) -> Tensor:
    """Status `[B] int32` of the user's inputs: features `[B, 1]` each, history `[B, L] int64`."""
    infinite = torch.zeros(history.size(0), dtype=torch.bool, device=history.device)
    for feature in features:
        if feature.is_floating_point():
            infinite = infinite | torch.isinf(feature).any(1)
    return first_status(flag(infinite, Status.USER_FEATURE.value), flag((history < -1).any(1), Status.HISTORY.value))


def user_inputs(schema: Schema) -> tuple[str, ...]:
    """The inputs that say for whom: the query vector, or user features and history."""
    if schema.query_dims:
        return ("query",)
    history = ("history",) if schema.history_length else ()
    return (*(feature.name for feature in schema.user_features), *history)


def input_names(schema: Schema) -> tuple[str, ...]:
    """The inputs of an artifact, in the order of forward's arguments and of config.pbtxt."""
    return (*user_inputs(schema), *INPUTS)


def forward_source(schema: Schema, *, own_tower: bool) -> str:
    """TorchScript source of `Pipeline.forward`; `own_tower`: the tower is a TorchScript module of the user's own."""
    return source_of(schema, "retrieve", INPUTS, own_tower=own_tower, status="search.new_zeros(search.size(0))")


def source_of(schema: Schema, method: str, inputs: tuple[str, ...], *, own_tower: bool, status: str) -> str:
    """TorchScript source of a `forward`: one argument an input, because Triton binds inputs to arguments by name.

    It calls `method` with the query, the history, the user's status and `inputs`, the first of which is `[B, n] int64`.
    `status`: what the status of a query vector begins with. Local names begin with '_', as no feature does, and modules
    are not named, so that a feature may be called "status" or "torch".
    """
    arguments = ", ".join(f"{name}: Tensor" for name in (*user_inputs(schema), *inputs))
    lines = [f"def forward(self, {arguments}):"]
    lines.append(f"    _history = {inputs[0]}.new_full([{inputs[0]}.size(0), 1], -1)")
    if schema.history_length:
        lines.append("    if history.size(1) > 0:")  # towers need not know of histories without any entry
        lines.append("        _history = history")
    if schema.query_dims:
        lines.append(f"    _status = {status}")
        lines.append("    _query = query")
    else:
        features = [feature.name for feature in schema.user_features]
        lines.append(f"    _features: List[Tensor] = [{', '.join(features)}]")
        lines.append("    _status = self.check_user(_features, _history)")
        if own_tower:
            named = [f"{name}={name}" for name in features]
            if schema.history_length:
                named.append("history=_history.clamp(min=-1)")  # a bad id must not make it raise for the whole batch
            lines.append(f"    _query = self.tower({', '.join(named)})")
        else:
            lines.append("    _query = self.tower(_features, _history)")
    lines.append(f"    return self.{method}(_query, _history, _status, {', '.join(inputs)})")
    return "\n".join(lines) + "\n"
