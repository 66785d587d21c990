"""Bad input end to end: a message that names the fault, exit code 1, and a repository and server as they were."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tritonclient.grpc as triton
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from builder.cli.main import main
from builder.serving.server import StockServer
from client import RetrievalClient
from client.schema import Schema
from tests.builder.artifacts import listing
from tests.end_to_end.conftest import CONFIG, DIMS, ITEMS, Shop
from tests.end_to_end.test_served import raw_batch, raw_infer


class OtherTower(nn.Module):
    def forward(self, user_id: Tensor) -> Tensor:
        return torch.zeros(user_id.size(0), 3)


def vectors(folder: Path) -> np.ndarray:
    return np.load(folder / "vectors.npy")


def with_nan(folder: Path) -> None:
    array = vectors(folder)
    array[17, 3] = np.nan
    np.save(folder / "vectors.npy", array)


def with_infinity(folder: Path) -> None:
    array = vectors(folder)
    array[0, 0] = -np.inf
    np.save(folder / "vectors.npy", array)


def one_missing(folder: Path) -> None:
    np.save(folder / "vectors.npy", vectors(folder)[:-1])


def of_integers(folder: Path) -> None:
    np.save(folder / "vectors.npy", vectors(folder).astype(np.int8))


def pickled(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.array([{"a": 1}, None], dtype=object))


def truncated(folder: Path) -> None:
    path = folder / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-7])


def parquet(folder: Path, rows: list[list[float] | None], ids: list[int]) -> None:
    pq.write_table(pa.table({"sku": ids, "embedding": rows}), folder / "vectors.parquet")
    config = folder / "retrieval.yaml"
    config.write_text(config.read_text().replace("path: vectors.npy, samples: queries.npy", "path: vectors.parquet"))


def ids_of(folder: Path) -> list[int]:
    found: list[int] = pq.read_table(folder / "items.parquet")["sku"].to_pylist()
    return found


def ragged(folder: Path) -> None:
    rows: list[list[float] | None] = [row.tolist() for row in vectors(folder)]
    rows[5] = [1.0]
    parquet(folder, rows, ids_of(folder))


def without_a_vector(folder: Path) -> None:
    rows: list[list[float] | None] = [row.tolist() for row in vectors(folder)]
    rows[5] = None
    parquet(folder, rows, ids_of(folder))


def of_an_unknown_item(folder: Path) -> None:
    parquet(folder, [row.tolist() for row in vectors(folder)], [*ids_of(folder)[:-1], 10**9])


def duplicate_ids(folder: Path) -> None:
    table = pq.read_table(folder / "items.parquet")
    ids = table["sku"].to_pylist()
    ids[1] = ids[0]
    pq.write_table(table.set_column(0, "sku", [ids]), folder / "items.parquet")


def empty_catalogue(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "items.parquet").slice(0, 0), folder / "items.parquet")


def too_many_clusters(folder: Path) -> None:
    config = folder / "retrieval.yaml"
    config.write_text(config.read_text().replace("results: 50", f"results: 50, clusters: {ITEMS + 1}"))


def samples_of_other_dims(folder: Path) -> None:
    np.save(folder / "queries.npy", np.ones((4, DIMS + 1)))


def tower(folder: Path, features: str) -> None:
    torch.jit.script(OtherTower()).save(str(folder / "tower.pt"))
    config = folder / "retrieval.yaml"
    text = config.read_text().replace("samples: queries.npy", "query: tower.pt")
    users = f"data:\n  users: {{features: [{{name: {features}, kind: category, values: integer}}]}}"
    config.write_text(text.replace("data:", users) + "network: {history: 0}\n")


def tower_of_other_names(folder: Path) -> None:
    tower(folder, "customer")


def tower_of_other_dims(folder: Path) -> None:
    tower(folder, "user_id")


def tower_that_is_none(folder: Path) -> None:
    tower(folder, "user_id")
    torch.save({"weights": torch.ones(2)}, folder / "tower.pt")


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (with_nan, "vectors.npy: the vector of item {id17} has a NaN or infinite component"),
    (with_infinity, "vectors.npy: the vector of item {id0} has a NaN or infinite component"),
    (one_missing, "vectors.npy: holds 2,999 vectors, the item table 3,000 items"),
    (of_integers, "vectors.npy: got shape (3000, 24) int8, expected [items, dims] floats"),
    (pickled, "vectors.npy: cannot be read as a .npy array"),
    (truncated, "vectors.npy: cannot be read as a .npy array"),
    (ragged, "vectors.parquet, column 'embedding': row 5 has 1 components, row 0 has 24"),
    (without_a_vector, "vectors.parquet, column 'embedding': 1 items have no vector"),
    (of_an_unknown_item, "1 vectors are of items that are not in data.items, for example 1000000000"),
    (duplicate_ids, "items.parquet, column 'sku': item id {id0} stands in rows 0 and 1"),
    (empty_catalogue, "items.parquet: holds no items"),
    (too_many_clusters, "index.clusters: got 3001, expected at most the number of items, 3000"),
    (samples_of_other_dims, "queries.npy: holds vectors of 25 dims, the items have 24"),
    (tower_of_other_names, "tower.pt: forward takes (user_id), the configuration declares (customer)"),
    (tower_of_other_dims, "tower.pt: returns [3, 3] float32 for 3 users, expected [3, 24] float32"),
    (tower_that_is_none, "tower.pt: is not a TorchScript module"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_bad_export_says_why_and_changes_nothing(
    repository: Path,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    for name in ("items.parquet", "vectors.npy", "queries.npy"):
        shutil.copyfile(shop.folder / name, tmp_path / name)
    (tmp_path / "retrieval.yaml").write_text(CONFIG)
    spoil(tmp_path)
    there = listing(repository)
    monkeypatch.setattr(
        sys, "argv", ["builder", "export", str(tmp_path / "retrieval.yaml"), "--repository", str(repository)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    assert (end.value.code, captured.out) == (1, "")
    error = captured.err[captured.err.index("error: ") :]
    assert message.format(id0=shop.ids[0], id17=shop.ids[17]) in error
    assert "Traceback" not in captured.err
    assert listing(repository) == there


# What the server or the network refuses as a whole: another type, no such input, an input too few, sizes that disagree.
REFUSED: list[tuple[str, Callable[[dict[str, np.ndarray]], object]]] = [
    ("another type", lambda batch: batch.update(query=batch["query"].astype(np.int64))),
    ("other dims", lambda batch: batch.update(query=batch["query"][:, :5].copy())),
    ("no such input", lambda batch: batch.update(quer=batch["query"])),
    ("an input too few", lambda batch: batch.pop("search")),
    ("other rows", lambda batch: batch.update(search=batch["search"][:1].copy())),
    ("too long a batch", lambda batch: batch.update({n: np.repeat(a, 65, 0) for n, a in batch.items()})),
]


@pytest.mark.server
@pytest.mark.parametrize(("what", "spoil"), REFUSED, ids=[what for what, _ in REFUSED])
def test_a_request_that_breaks_the_contract_is_refused_and_the_server_lives(
    server: StockServer, shop: Shop, schema: Schema, what: str, spoil: Callable[[dict[str, np.ndarray]], object]
) -> None:
    good = raw_infer(server, raw_batch(shop, schema, 4))
    batch = raw_batch(shop, schema, 4)
    spoil(batch)
    with pytest.raises(InferenceServerException) as caught:
        raw_infer(server, batch)
    assert caught.value.message()
    again = raw_infer(server, raw_batch(shop, schema, 4))
    for name in good:
        np.testing.assert_array_equal(again[name], good[name], err_msg=f"{what}: {name}")


@pytest.mark.server
def test_random_bytes_of_any_shape_never_stop_the_server(
    server: StockServer, shop: Shop, schema: Schema, client: RetrievalClient
) -> None:
    """Every row answers for itself with a status, whatever its words are; nothing of it reaches a neighbour."""
    seed = 31
    rng = np.random.default_rng(seed)
    expected = client.retrieve(query=shop.queries[0], k=10).item_ids.tolist()
    for attempt in range(40):
        words, ids = int(rng.integers(2, 70)), int(rng.integers(1, 70))
        small = rng.random() < 0.5
        batch = {
            "query": rng.integers(0, 2**32, (4, DIMS), dtype=np.uint32).view(np.float32),
            "filter": rng.integers(-4, 12, (4, words)) if small else rng.integers(-(2**63), 2**63 - 1, (4, words)),
            "exclude": rng.integers(-3, 3, (4, ids)) if small else rng.integers(-(2**63), 2**63 - 1, (4, ids)),
            "task_weights": rng.integers(0, 2**32, (4, 1), dtype=np.uint32).view(np.float32),
            "search": rng.integers(-2, 9, (4, 2)).astype(np.int32),
        }
        if small:
            batch["filter"][:, 0] = schema.fingerprint
            batch["query"] = rng.normal(size=(4, DIMS)).astype(np.float32)
        batch["query"][0] = shop.queries[0]
        batch["filter"][0, :2] = 0
        batch["exclude"][0] = -1
        batch["task_weights"][0] = np.nan
        batch["search"][0] = 0
        outputs = raw_infer(server, batch)
        assert outputs["status"][0, 0] == 0, f"seed {seed}, attempt {attempt}"
        assert outputs["item_ids"][0, :10].tolist() == expected, f"seed {seed}, attempt {attempt}"
        bad = outputs["status"][:, 0] != 0
        assert (outputs["count"][bad, 0] == 0).all(), f"seed {seed}, attempt {attempt}"
        assert set(outputs["status"][:, 0].tolist()) <= set(range(9)), f"seed {seed}, attempt {attempt}"
    with triton.InferenceServerClient(server.url) as bare:
        assert bare.is_model_ready("retrieval")
