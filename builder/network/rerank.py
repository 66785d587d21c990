"""From candidates to a probability of each task: the reranker, and what stands in its place where there is none.

The reranker is an OverArch as in SilverTorch (arXiv:2511.14881): it reads the user vector, the candidates' vectors,
what is known of the items beside, the products of both vectors and the graph of items that users took together
(neighbours.py), and sees every candidate that the search returns. What depends on the item alone is computed once, when
an artifact is written, and gathered by row.

Letters: B requests, M candidates, D dims, T tasks, H hidden units, S width of what is kept of an item, N items, R rows.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.data.columns import Column
from builder.data.vectors import VectorSource
from builder.network.history import newest
from builder.network.layers import PackedLayers, of_inputs, packed
from builder.network.neighbours import FEATURES, Neighbours
from builder.network.towers import item_encoders
from builder.network.vocabulary import Vocabulary

Kind = Literal["mlp", "mol", "graph"]
COMPONENTS = 4  # of users, and as many of items, in a mixture of logits: 16 logits
COMPONENT_DIMS = 32


def gather(table: Tensor, rows: Tensor) -> Tensor:
    """`table [R, W]` at `rows [B, M] int64` -> `[B, M, W]`, in a fraction of the time that `table[rows]` takes."""
    return torch.index_select(table, 0, rows.reshape(-1)).view(rows.size(0), rows.size(1), table.size(1))


class RetrievalScore(nn.Module):
    """No reranker: the one task's score is that of the search."""

    def forward(
        self,
        query: Tensor,
        history: Tensor,
        rows: Tensor,
        scores: Tensor,
        vectors: Tensor,
        scales: Tensor,
        ids: Tensor,
        item_rows: Tensor,
    ) -> Tensor:
        """As `Reranking.forward`, T = 1."""
        return scores.unsqueeze(2)


class Reranking(nn.Module):
    """A trained reranker with what it keeps of each item, by row of the index: `items [R, S] float16`; `catalogue`: of
    the item ids.

    On a CPU the operator `rerank` does for scorers with `layers` what `forward` says in torch's operators, faster:
    what is gathered of a few candidates stays in the cache until they are scored.
    """

    items: Tensor
    user: Tensor
    first: Tensor
    second: Tensor
    output: Tensor

    def __init__(self, scorer: nn.Module, items: Tensor, neighbours: Neighbours, catalogue: Vocabulary) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.scorer = scorer
        self.reads_vectors = bool(scorer.reads_vectors)
        self.neighbours = neighbours
        self.register_buffer("items", items)
        if isinstance(scorer, MlpScorer | GraphScorer):
            self.tasks = scorer.skip.out_features
            for name, layer in scorer.layers()._asdict().items():
                self.register_buffer(name, layer)

    def forward(
        self,
        query: Tensor,
        history: Tensor,
        rows: Tensor,
        scores: Tensor,
        vectors: Tensor,
        scales: Tensor,
        ids: Tensor,
        item_rows: Tensor,
    ) -> Tensor:
        """From candidates to probabilities `[B, M, T]`.

        `query [B, D]`, `history [B, L] int64` item ids; `rows [B, M] int32` and `scores [B, M]` of the search, -1 and
        -inf past the end; `vectors [R, D] float16`, `scales [NB, 32]`, `ids [R]` and `item_rows [N]` of the index.
        """
        if torch.jit.is_scripting() and hasattr(self, "tasks") and not query.is_cuda:  # type: ignore[attr-defined]
            graph = self.neighbours
            logits: Tensor = torch.ops.silvertriton.rerank(
                query.contiguous(),
                history.contiguous(),
                rows,
                scores,
                vectors,
                scales,
                self.items,
                ids,
                item_rows,
                graph.rows,
                graph.weights,
                self.user,
                self.first,
                self.second,
                self.output,
                graph.history,
                self.tasks,
            )
            return torch.sigmoid(logits)
        history = newest(history, self.neighbours.history)
        history = torch.where(self.catalogue(history) > 0, history, -1)  # what is not known counts as absent
        existing = rows.clamp(min=0).long()  # ONNX gathers by int64
        if self.reads_vectors:
            factors = gather(scales.view(-1, 1), existing)
            gathered = gather(vectors, existing).to(torch.float32).mul_(factors)  # [B, M, D]
        else:
            gathered = scores.unsqueeze(2)[:, :, :0]
        items = gather(self.items, existing).to(torch.float32)  # [B, M, S]
        finite = torch.where(rows < 0, torch.zeros_like(scores), scores)
        features = self.neighbours(history, rows, finite, ids, item_rows)  # [B, M, 5]
        known = (history >= 0).sum(1)  # [B]
        probabilities: Tensor = torch.sigmoid(self.scorer(query, known, gathered, items, finite, features))
        return probabilities


class Calibration(nn.Module):
    """Logits to calibrated logits, task by task: `logit / temperature + bias` (Platt 1999; Guo et al. 2017, ICML)."""

    temperature: Tensor
    bias: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(tasks))
        self.register_buffer("bias", torch.zeros(tasks))

    def forward(self, logits: Tensor) -> Tensor:
        """`[..., T]` -> `[..., T]`."""
        return logits / self.temperature + self.bias


class RetrievedLogit(nn.Module):
    """The part of the logits that the search's score alone gives: where the training of a reranker begins."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(tasks))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, scores: Tensor) -> Tensor:
        """`scores [B, M]` -> `[B, M, T]`."""
        return scores.unsqueeze(2) * self.scale + self.bias


class MlpScorer(nn.Module):
    """Two hidden layers over user, item and their elementwise product, added to the score of the search.

    Its last layer begins at zero: an untrained one keeps the order of the search. What is kept of an item is its part
    of the first layer, S = H.
    """

    def __init__(self, dims: int, tasks: int, hidden: int) -> None:
        super().__init__()
        self.reads_vectors = True
        self.user = nn.Linear(dims, hidden)
        self.length = nn.Linear(1, hidden, bias=False)
        self.product = nn.Linear(dims, hidden, bias=False)
        self.features = nn.Linear(FEATURES, hidden, bias=False)
        self.second = nn.Linear(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, tasks, bias=False)
        self.skip = nn.Linear(FEATURES, tasks, bias=False)
        self.retrieved = RetrievedLogit(tasks)
        self.calibration = Calibration(tasks)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.skip.weight)

    def forward(
        self, query: Tensor, known: Tensor, vectors: Tensor, items: Tensor, scores: Tensor, features: Tensor
    ) -> Tensor:
        """`query [B, D]`, `known [B]` length of the history, `vectors [B, M, D]`, `items [B, M, H]`, `scores [B, M]`,
        `features [B, M, 5]` (builder/network/neighbours.py) -> logits `[B, M, T]`."""
        # In place where no gradient needs what was there: new tensors of a megabyte cost more than what fills them.
        weights = query.unsqueeze(2) * self.product.weight.t()  # [B, D, H]: (u * v) W as v (u * W)
        user = self.user(query) + self.length(known.to(query.dtype).log1p().unsqueeze(1))  # [B, H]
        first = torch.bmm(vectors, weights).to(items.dtype).add_(items).add_(user.unsqueeze(1))  # [B, M, H]
        first.baddbmm_(features, self.features.weight.t().expand(features.size(0), -1, -1))
        added = self.last(self.second(first.relu_()).relu_()) + self.skip(features)  # [B, M, T]
        logits: Tensor = self.calibration(self.retrieved(scores) + added)
        return logits

    @torch.jit.unused
    def layers(self) -> PackedLayers:
        user = packed(of_inputs(self.user), of_inputs(self.length), self.user.bias)
        first = packed(of_inputs(self.product), of_inputs(self.features))
        return PackedLayers(user, first, *deeper_layers(self))


class GraphScorer(nn.Module):
    """`MlpScorer` without vectors: the score of the search, the graph, the length of the history, what the item is.

    Vectors of hundreds of dims tell which items were held out of the validation users. Where the future is not a draw
    like them, what is learned of that misleads; the graph says the same of all items. It also reads less.
    """

    def __init__(self, tasks: int, hidden: int) -> None:
        super().__init__()
        self.reads_vectors = False
        self.length = nn.Linear(1, hidden, bias=False)
        self.features = nn.Linear(FEATURES, hidden, bias=False)
        self.second = nn.Linear(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, tasks, bias=False)
        self.skip = nn.Linear(FEATURES, tasks, bias=False)
        self.retrieved = RetrievedLogit(tasks)
        self.calibration = Calibration(tasks)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.skip.weight)

    def forward(
        self, query: Tensor, known: Tensor, vectors: Tensor, items: Tensor, scores: Tensor, features: Tensor
    ) -> Tensor:
        """As `MlpScorer.forward`; `vectors` are not read."""
        length = self.length(known.to(items.dtype).log1p().unsqueeze(1)).unsqueeze(1)  # [B, 1, H]
        first = self.features(features).to(items.dtype).add_(items).add_(length)  # [B, M, H]
        added = self.last(self.second(first.relu_()).relu_()) + self.skip(features)  # [B, M, T]
        logits: Tensor = self.calibration(self.retrieved(scores) + added)
        return logits

    @torch.jit.unused
    def layers(self) -> PackedLayers:
        of_length = of_inputs(self.length)
        user = packed(of_length, torch.zeros_like(of_length))
        return PackedLayers(user, packed(of_inputs(self.features)), *deeper_layers(self))


def deeper_layers(scorer: MlpScorer | GraphScorer) -> tuple[Tensor, Tensor]:
    """The second layer and the output of a scorer, packed: what follows the output, all of it linear, is part of it."""
    of_features = of_inputs(scorer.skip).clone()  # [F, T]
    of_features[0] += scorer.retrieved.scale  # the first is the score of the search
    output = torch.cat([of_inputs(scorer.last), of_features, scorer.retrieved.bias.unsqueeze(0)])
    output = output / scorer.calibration.temperature
    output[-1] += scorer.calibration.bias
    return packed(of_inputs(scorer.second), scorer.second.bias), packed(output)


class MolScorer(nn.Module):
    """Mixture of logits (Zhai et al. 2023, KDD, doi:10.1145/3580305.3599897).

    Users and items have several component vectors each; the products of all pairs are weighted by a softmax over gates
    of user, item and the products, for each task, and added to the score of the search. What is kept of an item is its
    components and its gates, S = COMPONENTS * COMPONENT_DIMS + T * COMPONENTS**2.
    """

    def __init__(self, dims: int, tasks: int, hidden: int) -> None:
        super().__init__()
        self.reads_vectors = True
        self.components, self.component_dims, self.tasks = COMPONENTS, COMPONENT_DIMS, tasks
        pairs = COMPONENTS * COMPONENTS
        self.user = nn.Linear(dims, COMPONENTS * COMPONENT_DIMS)
        self.user_gates = nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, tasks * pairs))
        self.pair_gates = nn.Linear(pairs, tasks * pairs)
        self.mixed = nn.Parameter(torch.zeros(tasks))
        self.skip = nn.Linear(FEATURES, tasks, bias=False)
        nn.init.zeros_(self.skip.weight)
        self.retrieved = RetrievedLogit(tasks)
        self.calibration = Calibration(tasks)

    def forward(
        self, query: Tensor, known: Tensor, vectors: Tensor, items: Tensor, scores: Tensor, features: Tensor
    ) -> Tensor:
        """As `MlpScorer.forward`, `items [B, M, S]`."""
        batch, count = items.size(0), items.size(1)
        kept = self.components * self.component_dims
        users = F.normalize(self.user(query).view(batch, self.components, self.component_dims), dim=2)
        parts = items[:, :, :kept].reshape(batch, count * self.components, self.component_dims)
        squared = self.components * self.components  # -1 would not do: there may be no candidate
        pairs = torch.bmm(parts, users.transpose(1, 2)).view(batch, count, squared)  # [B, M, C * C]
        gates = self.pair_gates(pairs) + self.user_gates(query).unsqueeze(1) + items[:, :, kept:]
        gates = gates.view(batch, count, self.tasks, squared).softmax(3)  # [B, M, T, C * C]
        mixture = (gates * pairs.unsqueeze(2)).sum(3)  # [B, M, T]
        logits: Tensor = self.calibration(self.retrieved(scores) + mixture * self.mixed + self.skip(features))
        return logits


class ItemSide(nn.Module):
    """What the reranker keeps of each item: a function of its vector, its popularity and its features.

    `columns`: item features, all N long; `popularity` [N]: training interactions of each item; `dims`: of vectors, 0 to
    do without. Used offline only.
    """

    popularity: Tensor

    def __init__(self, columns: Sequence[Column], popularity: NDArray[np.int64], dims: int, width: int) -> None:
        super().__init__()
        logs = np.log1p(popularity.astype(np.float64))
        standard = (logs - logs.mean()) / max(float(logs.std()), 1e-6)
        self.register_buffer("popularity", torch.from_numpy(standard).float().unsqueeze(1), persistent=False)
        self.project = nn.Linear(dims + 1, width)
        self.encoders = item_encoders(columns, len(popularity), width)

    def forward(self, items: Tensor, vectors: Tensor) -> Tensor:
        """`items [M] int64` positions in the catalogue, their `vectors [M, D]` -> `[M, S]`."""
        kept: Tensor = self.project(torch.cat([vectors, self.popularity[items]], dim=1))
        for encoder in self.encoders:
            kept = kept + encoder(items)
        return kept


class Reranker(nn.Module):
    """Both sides of a reranker, as it is trained."""

    def __init__(
        self,
        kind: Kind,
        columns: Sequence[Column],
        popularity: NDArray[np.int64],
        *,
        dims: int,
        tasks: int,
        hidden: int,
        neighbours: Neighbours,
    ) -> None:
        """`neighbours`: of positions in the catalogue."""
        super().__init__()
        self.scorer: MlpScorer | MolScorer | GraphScorer
        if kind == "graph":
            self.scorer = GraphScorer(tasks, hidden)
        else:
            self.scorer = (MlpScorer if kind == "mlp" else MolScorer)(dims, tasks, hidden)
        self.read_dims = dims if self.scorer.reads_vectors else 0
        width = COMPONENTS * COMPONENT_DIMS + tasks * COMPONENTS**2 if kind == "mol" else hidden
        self.item_side = ItemSide(columns, popularity, self.read_dims, width)
        self.neighbours = neighbours
        self.kind = kind

    def forward(self, query: Tensor, history: Tensor, items: Tensor, vectors: Tensor, scores: Tensor) -> Tensor:
        """`query [B, D]`; `history [B, L] int64` and `items [B, M] int64` positions in the catalogue, -1 for none;
        their `vectors [B, M, D]` (`[B, M, 0]` will do where they are not read), `scores [B, M]` of the search, finite
        -> logits `[B, M, T]`."""
        batch, count = items.shape
        history = newest(history, self.neighbours.history)
        positions = torch.arange(len(self.neighbours.rows), device=items.device)
        features = self.neighbours(history, items.to(torch.int32), scores, positions, positions.to(torch.int32))
        distinct, place = torch.unique(items.clamp(min=0), return_inverse=True)
        first = torch.empty(len(distinct), dtype=torch.int64, device=items.device)
        first[place.flatten()] = torch.arange(items.numel(), device=items.device)
        kept = self.items_kept(distinct, vectors.flatten(0, 1)[first])
        by_candidate = kept[place.flatten()].view(batch, count, -1)
        logits: Tensor = self.scorer(query, (history >= 0).sum(1), vectors, by_candidate, scores, features)
        return logits

    def items_kept(self, items: Tensor, vectors: Tensor) -> Tensor:
        """What is kept of `items [M] int64` with these `vectors [M, D]`: `[M, S]`."""
        kept: Tensor = self.item_side(items, vectors[:, : self.read_dims])
        if self.kind == "mol":  # components are unit vectors
            width = COMPONENTS * COMPONENT_DIMS
            parts = F.normalize(kept[:, :width].reshape(-1, COMPONENTS, COMPONENT_DIMS), dim=2)
            kept = torch.cat([parts.reshape(-1, width), kept[:, width:]], dim=1)
        return kept

    @torch.no_grad()
    def keep(self, vectors: VectorSource, chunk: int = 65_536) -> Tensor:
        """What is kept of all items, `[N, S] float16`; `vectors` [N, D], read in chunks."""
        parts = []
        for start in range(0, len(vectors), chunk):
            part = torch.from_numpy(np.array(vectors[start : start + chunk], dtype=np.float32))
            parts.append(self.items_kept(torch.arange(start, start + len(part)), part).to(torch.float16))
        return torch.cat(parts)
