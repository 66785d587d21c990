"""Vectors trained elsewhere: .npy arrays and Parquet columns, aligned with the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.config import Config, Embeddings
from builder.data import values
from builder.data.catalogue import Catalogue, read_catalogue
from builder.data.tables import read_table
from builder.data.vectors import Vectors
from builder.errors import ConfigError, DataError

ROWS_PER_CHUNK = 65_536


def read_embeddings(config: Config) -> tuple[Catalogue, Vectors]:
    """Read the catalogue and its vectors, in the catalogue's order.

    Raises DataError: a file that is not what it should be, another number of vectors than items, an item without a
    vector, NaN or infinite components (naming the first item that has them).
    """
    embeddings = config.embeddings
    if embeddings is None:
        raise ConfigError("embeddings is missing: where the vectors are")
    base, vector_ids = _read_file(embeddings, config.data.items.id if config.data.items else None)
    where = str(embeddings.path)
    if config.data.items is None:
        ids = np.arange(len(base)) if vector_ids is None else vector_ids
        order = np.argsort(ids, kind="stable")
        _refuse_repeats(ids[order], where)
        catalogue = Catalogue(ids[order], (), order)
        vectors = Vectors(base, None if vector_ids is None else order)
    else:
        catalogue = read_catalogue(config.data.items)
        if vector_ids is None:
            if len(base) != len(catalogue):
                raise DataError(
                    f"holds {len(base):,} vectors, the item table {len(catalogue):,} items",
                    where=where,
                    remedy="A .npy array has one vector for each row of data.items, in the same order.",
                )
            ascending = np.array_equal(catalogue.rows, np.arange(len(catalogue)))
            vectors = Vectors(base, None if ascending else catalogue.rows)
        else:
            vectors = Vectors(base, _align(catalogue, vector_ids, where))
    _refuse_not_finite(vectors, catalogue.ids, where)
    return catalogue, vectors


def read_samples(path: Path, dims: int) -> NDArray[np.float32]:
    """Query vectors [Q, D] float32 from a .npy file. Raises DataError: no such array, NaN or infinite components."""
    samples = _read_npy(path)
    if samples.shape[1] != dims:
        raise DataError(f"holds vectors of {samples.shape[1]} dims, the items have {dims}", where=str(path))
    with np.errstate(over="ignore"):
        samples = np.array(samples, dtype=np.float32)
    if not np.isfinite(samples).all():
        row = int(np.argmin(np.isfinite(samples).all(axis=1)))
        raise DataError(f"row {row} has a NaN or infinite component, or one beyond float32", where=str(path))
    return samples


def _read_file(
    embeddings: Embeddings, item_id: str | None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64] | None]:
    if embeddings.path.suffix == ".npy":
        return _read_npy(embeddings.path), None
    id_column = embeddings.id or item_id
    if id_column is None:
        raise ConfigError("embeddings.id is missing: the column of item ids", where=str(embeddings.path))
    table = read_table(embeddings.path, [id_column, embeddings.column])
    where = f"{embeddings.path}, column {id_column!r}"
    if not len(table):
        raise DataError("holds no vectors", where=str(embeddings.path))
    ids = values.item_ids(values.column(table, id_column), where)
    return _from_lists(values.column(table, embeddings.column), f"{embeddings.path}, column {embeddings.column!r}"), ids


def _read_npy(path: Path) -> NDArray[np.floating[Any]]:
    if not path.exists():
        raise DataError("no such file", where=str(path), remedy="Paths are relative to the folder of retrieval.yaml.")
    try:
        # Refuses pickles, and the archives that numpy.load would open.
        array: NDArray[np.floating[Any]] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    except Exception as error:  # for a damaged header NumPy raises tokenizer and type errors too
        raise DataError(
            f"cannot be read as a .npy array: {error}",
            where=str(path),
            remedy="Write it with numpy.save(path, vectors) from a [items, dims] float array.",
        ) from error
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise DataError(
            f"got shape {array.shape} {array.dtype}, expected [items, dims] floats, at least one of each",
            where=str(path),
        )
    return array


def _from_lists(array: pa.Array, where: str) -> NDArray[np.floating[Any]]:
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise DataError(f"got {kind}, expected lists of floats", where=where)
    if array.null_count:
        raise DataError(f"{array.null_count:,} items have no vector", where=where)
    flat = array.flatten()
    if flat.null_count:
        raise DataError("a vector has a missing component", where=where)
    dims = len(flat) // len(array)
    if not pa.types.is_fixed_size_list(kind):
        lengths = np.diff(np.asarray(array.offsets))
        if (lengths != lengths[0]).any():
            row = int(np.argmax(lengths != lengths[0]))
            raise DataError(f"row {row} has {lengths[row]} components, row 0 has {lengths[0]}", where=where)
    if dims == 0:
        raise DataError("vectors have no components", where=where)
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), dims)


def _align(catalogue: Catalogue, vector_ids: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """The vector of each item; every item needs one, and every vector an item."""
    order = np.argsort(vector_ids, kind="stable")
    _refuse_repeats(vector_ids[order], where)
    extra = catalogue.find(vector_ids) < 0
    if extra.any():
        raise DataError(
            f"{int(extra.sum()):,} vectors are of items that are not in data.items, for example "
            f"{vector_ids[int(np.argmax(extra))]}",
            where=where,
        )
    if len(vector_ids) < len(catalogue):
        missing = catalogue.ids[~np.isin(catalogue.ids, vector_ids)]
        raise DataError(f"{len(missing):,} items of data.items have no vector, for example {missing[0]}", where=where)
    return order


def _refuse_repeats(ids: NDArray[np.int64], where: str) -> None:
    same = np.flatnonzero(np.diff(ids) == 0)
    if len(same):
        raise DataError(f"item id {ids[same[0]]} stands there twice ({len(same):,} repeats in all)", where=where)


def _refuse_not_finite(vectors: Vectors, ids: NDArray[np.int64], where: str) -> None:
    for start in range(0, len(vectors), ROWS_PER_CHUNK):
        with np.errstate(over="ignore"):
            finite = np.isfinite(vectors[start : start + ROWS_PER_CHUNK]).all(axis=1)
        if not finite.all():
            item = ids[start + int(np.argmin(finite))]
            raise DataError(
                f"the vector of item {item} has a NaN or infinite component, or one beyond float32",
                where=where,
                remedy="Repair or drop such vectors before the export.",
            )
