import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.data.tables import read_table
from builder.errors import DataError

TABLE = pa.table({"id": [1, 2], "name": ["NA", None], "n": [None, 0.5]})
CSV = 'id,name,n\n1,"NA",\n2,,0.5\n'


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "one.parquet")
    assert read_table(tmp_path / "one.parquet", ["n", "id"]) == TABLE.select(["n", "id"])
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(TABLE.slice(0, 1), folder / "0.parquet")
    pq.write_table(TABLE.slice(1), folder / "1.parquet")
    assert read_table(folder, ["id"])["id"].to_pylist() == [1, 2]


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    assert read_table(tmp_path / "t.csv", ["id", "name", "n"]) == TABLE
    assert read_table(tmp_path / "t.csv", ["id"], text=["id"])["id"].to_pylist() == ["1", "2"]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert read_table(tmp_path / "t.csv.gz", ["id", "name", "n"]) == TABLE


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_missing_column_names_those_there(tmp_path: Path, name: str) -> None:
    if name == "t.csv":
        (tmp_path / name).write_text(CSV)
    else:
        pq.write_table(TABLE, tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name, ["id", "nane"])
    assert str(caught.value) == f"{tmp_path / name}: no column 'nane'\n  Did you mean 'name'? Known: id, name, n."


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.parquet", ["id"])
    (tmp_path / "t.parquet").write_text(CSV)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(tmp_path / "t.parquet", ["id"])
    (tmp_path / "t.csv").write_text("id,name\n1,a\n2\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_table(tmp_path / "t.csv", ["id"])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_table(tmp_path / "empty.csv", ["id"])
    (tmp_path / "t.txt").write_text(CSV)
    with pytest.raises(DataError, match=r"t\.txt: cannot be read as Parquet(.|\n)*Files named \.csv or \.csv\.gz are"):
        read_table(tmp_path / "t.txt", ["id"])
    (tmp_path / "semicolons.csv").write_text(CSV.replace(",", ";"))
    with pytest.raises(DataError, match="one column, 'id;name;n': commas separate fields here, not ';'"):
        read_table(tmp_path / "semicolons.csv", ["id"])
    (tmp_path / "twice.csv").write_text("id,id\n1,2\n")
    with pytest.raises(DataError, match="column 'id' stands there twice"):
        read_table(tmp_path / "twice.csv", ["id"])


def test_text_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    """Arrow neither writes nor shows it, and reads it all the same."""
    damaged = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])),
                                                     pa.py_buffer(b"a\xff")])  # fmt: skip
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2]), damaged)
    pq.write_table(pa.table({"id": [1, 2], "name": damaged, "tags": lists}), tmp_path / "t.parquet")
    for name in ("name", "tags"):
        with pytest.raises(DataError, match=r"cannot be read as Parquet: .*UTF8"):
            read_table(tmp_path / "t.parquet", ["id", name])
    assert read_table(tmp_path / "t.parquet", ["id"])["id"].to_pylist() == [1, 2]
    (tmp_path / "t.csv").write_bytes(b"id,caf\xe9\n1,2\n")
    with pytest.raises(DataError, match=r"cannot be read as CSV: .*utf-8"):
        read_table(tmp_path / "t.csv", ["id"])
