"""Results as tables: one row a hit, the columns `item_id`, `score` and `task_NAME` for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from client._models import Results


def to_numpy(result: Results) -> NDArray[Any]:
    """[count] structured array: int64, float32, and float32 for each task."""
    columns = _columns(result)
    table = np.empty(len(result), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def to_arrow(result: Results) -> Any:
    """A pyarrow.Table. Raises `ModuleNotFoundError` without pyarrow."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_arrow() needs pyarrow: pip install pyarrow", name="pyarrow") from error
    return pyarrow.table({name: np.ascontiguousarray(column) for name, column in _columns(result).items()})


def to_pandas(result: Results) -> Any:
    """A pandas.DataFrame. Raises `ModuleNotFoundError` without pandas."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_pandas() needs pandas: pip install pandas", name="pandas") from error
    return pandas.DataFrame({name: column.copy() for name, column in _columns(result).items()})


def _columns(result: Results) -> dict[str, NDArray[Any]]:
    scores = np.asarray(result.task_scores)
    tasks = {f"task_{name}": scores[:, position] for position, name in enumerate(result.task_names)}
    return {"item_id": np.asarray(result.item_ids), "score": np.asarray(result.scores), **tasks}
