"""What every stress shares: a catalogue of awkward values, served by the stock server, and the memory of its processes.

The project's Python,
the report with machine and commit are those of scripts/bench.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from _bench import PYTHON, ROOT, report, use_project_python  # noqa: F401 - for those who import from here

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from builder.serving.server import StockServer

CONFIG = """
name: stress
embeddings: {{path: vectors.npy, samples: queries.npy}}
data:
  items:
    path: items.parquet
    id: sku
    features:
      - {{name: colour, kind: category, filter: true}}
      - {{name: code, kind: category, filter: true}}
      - {{name: genres, kind: tags, filter: true}}
      - {{name: marks, kind: tags, filter: true}}
      - {{name: year, kind: number, filter: true}}
      - {{name: price, kind: number, filter: true}}
      - {{name: released, kind: date, filter: true}}
      - {{name: ünïcode, kind: category, filter: true}}
      - {{name: title_id, kind: category, filter: true, column: sku}}
      - {{name: shelf, kind: category}}
index: {{results: {results}, recall: 0.99, max_filter_words: 65536}}
"""
COLOURS = [
    "red",
    "green",
    "blue",
    "ünïcode",
    "日本語",
    'it\'s "quoted"',
    "two words",
    "back\\slash",
    "\U0001f3ac",
    "a\nb",
]
CODES = [0, 1, -1, 7, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63) + 1]
GENRES = ["Drama", "War", "Comedy", "Noir", "Rare", "Ελληνικά", "x" * 300]
MARKS = [0, 1, 2, 3, -5, 2**62]
PRICES = [0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 0.1, 1 / 3, 2.0**53, 2.0**53 + 2]
YEARS = range(1950, 2020)
DATES = (-62_135_596_800, 253_402_300_799)  # seconds: years 1 to 9999


@dataclass(frozen=True)
class Catalogue:
    """What was exported: `ids` [N], unit `vectors` [N, D], the items' values as dicts, and `queries` [Q, D]."""

    repository: Path
    ids: np.ndarray
    vectors: np.ndarray
    items: list[dict[str, Any]]
    queries: np.ndarray


def make_catalogue(folder: Path, items: int, dims: int, results: int, seed: int, queries: int = 256) -> Catalogue:
    """Write vectors and items with values of every kind, a tenth of them missing, and export them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((items + queries, dims), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    ids = np.sort(rng.choice(100 * items, items, replace=False)).astype(np.int64)
    rng.shuffle(ids)

    def pick(values: Any) -> Any:
        return None if rng.random() < 0.1 else values[min(len(values) - 1, int(rng.exponential(2.0)))]

    def some(values: list[Any]) -> list[Any]:
        return [value for value in values if rng.random() < 0.25]

    made = [
        {
            "sku": sku,
            "colour": pick(COLOURS),
            "code": pick(CODES),
            "genres": some(GENRES),
            "marks": some(MARKS),
            "year": None if rng.random() < 0.1 else int(rng.integers(YEARS.start, YEARS.stop)),
            "price": PRICES[rng.integers(len(PRICES))] if rng.random() < 0.3 else float(rng.normal() * 100),
            "released": None if rng.random() < 0.1 else int(rng.integers(*DATES) if rng.random() < 0.3 else _day(rng)),
            "ünïcode": pick(COLOURS),
            "shelf": pick(CODES),
        }
        for sku in ids.tolist()
    ]
    columns = {name: [item[name] for item in made] for name in made[0]}
    columns["released"] = pa.array(columns["released"], pa.timestamp("s"))
    columns["marks"] = pa.array(columns["marks"], pa.list_(pa.int64()))
    pq.write_table(pa.table(columns), folder / "items.parquet")
    np.save(folder / "vectors.npy", drawn[queries:])
    np.save(folder / "queries.npy", drawn[:queries])
    (folder / "retrieval.yaml").write_text(CONFIG.format(results=results))
    for item in made:
        item["title_id"] = item["item_id"] = item["sku"]
    repository = folder / "repository"
    command = [PYTHON, "-m", "builder", "export", folder / "retrieval.yaml", "--repository", repository]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, stdout=sys.stderr)
    return Catalogue(repository, ids, drawn[queries:], made, drawn[:queries])


def _day(rng: np.random.Generator) -> int:
    return 86_400 * int(rng.integers(0, 20_000))


@contextmanager
def served(catalogue: Catalogue, log: Path) -> Iterator[StockServer]:
    from builder.serving.server import StockServer

    with StockServer(catalogue.repository, log=log) as server:
        yield server


def held_by_server(root: int) -> dict[str, int]:
    """`held_bytes` of a server's processes by role: `server`, and `models`, its Python stubs together.

    `root`: the process whose descendants are looked through.
    """
    import psutil

    found = {"server": 0, "models": 0}
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.Error, OSError):  # it ended meanwhile
            name = process.name()
            if name.startswith(("tritonserver", "triton_python_b")):
                found["server" if name == "tritonserver" else "models"] += held_bytes(process.pid)
    return found


def held_bytes(process: int) -> int:
    """Resident memory that a process filled: anonymous, and its share of shared memory.

    Without mapped files, the code of its libraries above all: its share of them grows when other processes of the host
    that have mapped them end.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
