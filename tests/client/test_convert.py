from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from client import Ranking, Retrieval, Stats

COLUMNS = ["item_id", "score", "task_click", "task_score"]


def result(kind: str, count: int) -> Any:
    """Of two tasks, one of which has the name of a column; read-only and not contiguous, as answers are."""
    ids = np.array([7, 2**62, 9])[:count]
    task_scores = np.arange(6, dtype=np.float32).reshape(3, 2)[:count]
    scores = task_scores[:, 0] * 10
    for array in (ids, scores, task_scores):
        array.flags.writeable = False
    if kind == "retrieval":
        return Retrieval(ids, scores, task_scores, ("click", "score"), Stats(1, 2, 3, exact=True))
    return Ranking(ids, scores, task_scores, ("click", "score"), np.arange(count), ids[:0])


ROWS = [(7, 0.0, 0.0, 1.0), (2**62, 20.0, 2.0, 3.0), (9, 40.0, 4.0, 5.0)]


@pytest.mark.parametrize("kind", ["retrieval", "ranking"])
@pytest.mark.parametrize("count", [0, 3])
class TestTables:
    def test_numpy(self, kind: str, count: int) -> None:
        table = result(kind, count).to_numpy()
        assert table.dtype.names == tuple(COLUMNS)
        assert [table.dtype[name] for name in COLUMNS] == [np.int64, *[np.float32] * 3]
        assert table.tolist() == ROWS[:count]

    def test_arrow(self, kind: str, count: int) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        table = result(kind, count).to_arrow()
        assert table.schema.names == COLUMNS
        assert table.schema.types == [pyarrow.int64(), *[pyarrow.float32()] * 3]
        assert [tuple(row.values()) for row in table.to_pylist()] == ROWS[:count]

    def test_pandas(self, kind: str, count: int) -> None:
        pytest.importorskip("pandas")
        frame = result(kind, count).to_pandas()
        assert list(frame.columns) == COLUMNS
        assert [str(dtype) for dtype in frame.dtypes] == ["int64", *["float32"] * 3]
        assert list(frame.itertuples(index=False, name=None)) == ROWS[:count]
        frame["score"] += 1  # the frame is the caller's


@pytest.mark.parametrize(("method", "module"), [("to_arrow", "pyarrow"), ("to_pandas", "pandas")])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, method: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"needs {module}: pip install {module}"):
        getattr(result("retrieval", 3), method)()


def test_neither_is_imported_with_the_client() -> None:
    script = "import sys, client, client.testing\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"pandas", "pyarrow"}
