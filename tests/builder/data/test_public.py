import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from builder.config import Config
from builder.data import download, gowalla, movielens
from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.data.dataset import read_dataset
from builder.errors import DataError, DownloadError
from client.hashing import string_key


def published(folder: Path) -> dict[str, bytes]:
    """The files as GroupLens has them: no header, Latin-1, tabs in u.data."""
    files = {
        name: (folder / "ml-100k" / name).read_bytes().partition(b"\n")[2] for name in ("u.data", "u.item", "u.user")
    }
    files["u.data"] = files["u.data"].replace(b"|", b"\t")
    files["u.item"] = files["u.item"].replace(b"1|Toy Story", "1|Toy St\xf6ry".encode("latin-1"), 1)
    return files


def test_movielens(real_data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(Config.load(movielens.movielens_100k(real_data, tmp_path)))
    assert dataset.catalogue.ids.tolist() == list(range(1, 1683))
    title, genres, year, released = dataset.catalogue.columns
    assert isinstance(title, CategoryColumn)
    assert title.keys.tolist() == dataset.catalogue.ids.tolist()
    assert isinstance(genres, TagsColumn)
    toy_story = {string_key(genre) for genre in ("Animation", "Children's", "Comedy")}
    assert set(genres.keys[: genres.offsets[1]].tolist()) == toy_story
    assert isinstance(year, NumberColumn)
    assert isinstance(released, NumberColumn)
    assert (year.values[0], released.values[0]) == (1995, 788_918_400)  # 1995-01-01
    assert np.flatnonzero(np.isnan(year.values)).tolist() == [266]  # the item called "unknown" has no date
    assert len(dataset.user_keys) == 942  # one user never rated 4 or better
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 55_375
    table = pq.read_table(tmp_path / "items.parquet")
    assert table["title"][0].as_py() == "Toy Story (1995)"
    assert pq.read_table(tmp_path / "ratings.parquet").num_rows == 100_000


def test_movielens_as_published(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in published(real_data).items():
            opened.writestr(f"ml-100k/{name}", content)
    monkeypatch.setattr(movielens, "download", lambda url: archive.getvalue())
    with pytest.raises(DownloadError, match=f"checksum [0-9a-f]{{32}}, expected {movielens.MD5}"):
        movielens.movielens_100k(None, tmp_path)
    monkeypatch.setattr(movielens, "check_md5", lambda *arguments: None)
    movielens.movielens_100k(None, tmp_path / "published")
    movielens.movielens_100k(real_data, tmp_path / "given")
    for name in ("users", "ratings"):
        expected = pq.read_table(tmp_path / "given" / f"{name}.parquet")
        assert pq.read_table(tmp_path / "published" / f"{name}.parquet") == expected
    items = pq.read_table(tmp_path / "published" / "items.parquet")
    assert items["title"][0].as_py() == "Toy Störy (1995)"
    expected = pq.read_table(tmp_path / "given" / "items.parquet")
    assert items.drop(["title"]) == expected.drop(["title"])


def test_gowalla(real_data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(Config.load(gowalla.gowalla(real_data, tmp_path)))
    assert (len(dataset.catalogue), len(dataset.user_keys)) == (40_981, 29_858)
    assert (len(dataset.test), len(dataset.test.targets.values)) == (29_858, 217_242)
    assert len(dataset.test.history.values) == 810_128
    assert len(dataset.train) + len(dataset.validation.targets.values) == 810_128
    assert len(dataset.validation) == 5000
    assert dataset.test.targets[1][:5].tolist() == [31613, 34341, 36414, 36721, 16213]


@pytest.mark.parametrize("load", [movielens.movielens_100k, gowalla.gowalla])
def test_folder_without_the_files(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(DataError, match="no file"):
        load(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files(tmp_path: Path) -> None:
    for name in ("u.data", "u.item", "u.user", "train.txt", "test.txt"):
        (tmp_path / name).write_text("1|2\n")
    with pytest.raises(DataError, match="is not MovieLens 100K"):
        movielens.movielens_100k(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="is not Gowalla"):
        gowalla.gowalla(tmp_path, tmp_path / "out")
    (tmp_path / "train.txt").write_text("0 1 2\n")
    with pytest.raises(DataError, match="2 pairs, expected 810,128"):
        gowalla.gowalla(tmp_path, tmp_path / "out")


def test_git_blob() -> None:
    download.check_git_blob(b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a", "file")
    with pytest.raises(DownloadError, match="expected 0"):
        download.check_git_blob(b"hello\n", "0", "file")


def test_unreachable() -> None:
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        download.download("http://127.0.0.1:9/nothing")
