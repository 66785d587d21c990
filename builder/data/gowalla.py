"""Gowalla check-ins (SNAP, Cho et al. 2011), the split of NGCF and LightGCN, as Parquet and a retrieval.yaml."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from builder.data.download import check_git_blob, download
from builder.errors import DataError

# The repository of LightGCN-PyTorch (He et al. 2020, arXiv:2002.02126), at one commit; checksums are git's.
_COMMIT = "947ca2b3b1d2d3545b114145710cb06c4e57b3d2"
URL = f"https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/{_COMMIT}/data/gowalla"
GIT_BLOBS = {
    "train.txt": "a27782bd7a1d4d0744148dc0460ea94da74763f2",
    "test.txt": "9ed5af4b5d21511f33740b4e22e3852f45671800",
}
USERS, ITEMS = 29_858, 40_981
_PAIRS = {"train.txt": 810_128, "test.txt": 217_242}

RETRIEVAL_YAML = """\
# Gowalla: 29,858 users, 40,981 places, 810,128 check-ins to train on and 217,242 to test, without features or times.
name: places
data:
  items: {path: items.parquet, id: item_id}
  interactions: {path: train.parquet, user: user_id, item: item_id}
split: {kind: file, test: test.parquet, validation_users: 5000, validation_blocks: true}
network: {dims: 1024, history: 256, user_id: false}
training: {start: spectral, epochs: 0}
rerank: {kind: graph}
index: {candidates: 500}
"""


def gowalla(source: Path | None, out: Path) -> Path:
    """Write items.parquet, train.parquet, test.parquet and retrieval.yaml to `out`; returns the path of the last.

    `source`: a folder with train.txt and test.txt, plain or gzipped (or with a folder `gowalla` that has them); None
    downloads them. Raises DownloadError, or DataError for a file that is missing or not this dataset.
    """
    contents = _contents(source)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        users, items = _pairs(name, content)
        table = pa.table({"user_id": users, "item_id": items})
        pa.parquet.write_table(table, out / name.replace(".txt", ".parquet"))
    pa.parquet.write_table(pa.table({"item_id": np.arange(ITEMS)}), out / "items.parquet")
    path = out / "retrieval.yaml"
    path.write_text(RETRIEVAL_YAML, encoding="utf-8")
    return path


def _contents(source: Path | None) -> dict[str, bytes]:
    contents = {}
    folder = source / "gowalla" if source is not None and (source / "gowalla").is_dir() else source
    for name, blob in GIT_BLOBS.items():
        if folder is None:
            contents[name] = download(f"{URL}/{name}")
            check_git_blob(contents[name], blob, f"{URL}/{name}")
        elif (folder / name).is_file():
            contents[name] = (folder / name).read_bytes()
        elif (folder / f"{name}.gz").is_file():
            contents[name] = gzip.decompress((folder / f"{name}.gz").read_bytes())
        else:
            raise DataError(f"no file {name} or {name}.gz", where=str(folder), remedy=f"Fetch it from {URL}.")
    return contents


def _pairs(name: str, content: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and items, one entry a check-in, from lines of a user and its items."""
    lines = [line.split() for line in content.splitlines()]
    try:
        users = np.repeat([int(line[0]) for line in lines if line], [len(line) - 1 for line in lines if line])
        items = np.array([int(item) for line in lines for item in line[1:]], np.int64)
    except ValueError as error:
        raise DataError(f"is not Gowalla: {error}", where=name) from error
    if len(items) != _PAIRS[name] or items.max() >= ITEMS or users.max() >= USERS:
        raise DataError(f"is not this split of Gowalla: {len(items):,} pairs, expected {_PAIRS[name]:,}", where=name)
    return users.astype(np.int64), items
