"""MovieLens 100K (Harper and Konstan 2015, doi:10.1145/2827872) as Parquet and a retrieval.yaml."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from builder.data import values
from builder.data.download import check_md5, download
from builder.errors import DataError

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MD5 = "0e33842e24a9c977be4e0107933c0723"  # as published beside the file
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_FILES = {
    "u.data": ("user", "item", "rating", "timestamp"),
    "u.item": ("item", "title", "released", "video_released", "url", *GENRES),
    "u.user": ("user", "age", "gender", "occupation", "zip"),
}
_ROWS = {"u.data": 100_000, "u.item": 1_682, "u.user": 943}

RETRIEVAL_YAML = """\
# MovieLens 100K: 943 users, 1,682 films, 100,000 ratings. Users are shown films they would rate 4 or better.
name: movies
data:
  items:
    path: items.parquet
    id: item_id
    features:
      - {name: title_id, kind: category, filter: true}
      - {name: genres, kind: tags, filter: true}
      - {name: year, kind: number, filter: true}
      - {name: released, kind: date, filter: true}
  users:
    path: users.parquet
    id: user_id
    features:
      - {name: age, kind: number}
      - {name: gender, kind: category}
      - {name: occupation, kind: category}
  interactions:
    path: ratings.parquet
    user: user_id
    item: item_id
    time: time
tasks: {like: rating >= 4}
split: {kind: leave-last-out}
network: {dims: 32, history: 10}
training: {batch: 512, negatives: 256, learning_rate: 0.005, temperature: 0.2}
"""


def movielens_100k(source: Path | None, out: Path) -> Path:
    """Write items.parquet, users.parquet, ratings.parquet and retrieval.yaml to `out`; returns the path of the last.

    `source`: a folder with u.data, u.item and u.user (or with a folder `ml-100k` that has them), as published or with
    a header line and `|` between fields; None downloads them. Raises DownloadError, or DataError for a file that is
    missing or not this dataset.
    """
    ratings, items, users = (_read(name, content) for name, content in _contents(source).items())
    out.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(_items(items), out / "items.parquet")
    pa.parquet.write_table(
        users.select(["user", "age", "gender", "occupation"]).rename_columns(
            ["user_id", "age", "gender", "occupation"]
        ),
        out / "users.parquet",
    )
    times = pa.array(ratings["timestamp"].to_numpy(), pa.timestamp("s"))
    pa.parquet.write_table(
        pa.table({"user_id": ratings["user"], "item_id": ratings["item"], "rating": ratings["rating"], "time": times}),
        out / "ratings.parquet",
    )
    path = out / "retrieval.yaml"
    path.write_text(RETRIEVAL_YAML, encoding="utf-8")
    return path


def _contents(source: Path | None) -> dict[str, bytes]:
    if source is None:
        archive = download(URL)
        check_md5(archive, MD5, URL)
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return {name: opened.read(f"ml-100k/{name}") for name in _FILES}
    folder = source / "ml-100k" if (source / "ml-100k").is_dir() else source
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"no file {missing[0]}", where=str(folder), remedy=f"Unpack {URL} and give its folder.")
    return {name: (folder / name).read_bytes() for name in _FILES}


def _read(name: str, content: bytes) -> pa.Table:
    """A table with the columns of `_FILES`. As published: no header, Latin-1, tabs in u.data and bars elsewhere."""
    first_line = content.partition(b"\n")[0]
    has_header = not first_line[:1].isdigit()
    delimiter = "|" if b"|" in first_line else "\t"
    columns = list(_FILES[name])
    try:
        table = pa.csv.read_csv(
            io.BytesIO(content),
            pa.csv.ReadOptions(column_names=columns, skip_rows=int(has_header), encoding="latin-1"),
            pa.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            pa.csv.ConvertOptions(column_types={"zip": pa.string(), "released": pa.string()}),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"is not MovieLens 100K: {error}", where=name) from error
    if len(table) != _ROWS[name]:
        raise DataError(f"is not MovieLens 100K: {len(table):,} rows, expected {_ROWS[name]:,}", where=name)
    return table


def _items(raw: pa.Table) -> pa.Table:
    flags = np.stack([raw[genre].to_numpy() for genre in GENRES[1:]], axis=1).astype(bool)  # "unknown" is no genre
    rows, found = np.nonzero(flags)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(raw)))]).astype(np.int32)
    released = values.seconds(values.column(raw, "released"), "%d-%b-%Y", "u.item")
    days = pa.array(released / 86_400, from_pandas=True).cast(pa.int32()).cast(pa.date32())
    return pa.table(
        {
            "item_id": raw["item"],
            "title": raw["title"],
            "title_id": raw["item"],
            "genres": pa.ListArray.from_arrays(offsets, pa.array(np.array(GENRES[1:], dtype=object)[found])),
            "year": pa.compute.year(days),
            "released": days,
        }
    )
