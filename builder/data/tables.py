"""Tables from Parquet and CSV files: the columns asked for, or an error that names what is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from builder.errors import DataError, did_you_mean

_CSV_SUFFIXES = (".csv", ".csv.gz")


def read_table(path: Path, columns: Iterable[str], *, text: Iterable[str] = ()) -> pa.Table:
    """The named columns of a Parquet file, a folder of them, or a CSV file with a header line (may be gzipped).

    In CSV an empty field is a missing value and types are inferred, except that the `text` columns stay strings.
    Raises DataError: no such file, not that format, a column that is not there.
    """
    wanted = list(dict.fromkeys(columns))
    if not path.exists():
        raise DataError("no such file", where=str(path), remedy="Paths are relative to the folder of retrieval.yaml.")
    try:
        if _is_csv(path):
            _check_columns(path, wanted, _csv_header(path))
            options = pa.csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: pa.string() for name in text},
                null_values=[""],
                strings_can_be_null=True,
            )
            return pa.csv.read_csv(path, convert_options=options)
        _check_columns(path, wanted, pa.parquet.ParquetDataset(path).schema.names)
        table = pa.parquet.read_table(path, columns=wanted)
        table.validate(full=True)  # nothing else asks whether strings are UTF-8
        return table
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, UnicodeDecodeError) as error:
        form = "CSV" if _is_csv(path) else "Parquet"
        remedy = "" if path.suffix == ".parquet" else "Files named .csv or .csv.gz are read as CSV, others as Parquet."
        raise DataError(f"cannot be read as {form}: {error}", where=str(path), remedy=remedy) from error


def _is_csv(path: Path) -> bool:
    return path.name.endswith(_CSV_SUFFIXES)


def _csv_header(path: Path) -> list[str]:
    with pa.csv.open_csv(path) as reader:
        return list(reader.schema.names)


def _check_columns(path: Path, wanted: list[str], there: list[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing and len(there) == 1 and _is_csv(path) and (separators := [one for one in ";\t|" if one in there[0]]):
        raise DataError(
            f"one column, {there[0]!r}: commas separate fields here, not {separators[0]!r}",
            where=str(path),
            remedy="Write it with commas, or as Parquet.",
        )
    if missing:
        raise DataError(f"no column {missing[0]!r}", where=str(path), remedy=did_you_mean(missing[0], there))
    twice = [name for name in wanted if there.count(name) > 1]
    if twice:
        raise DataError(f"column {twice[0]!r} stands there twice", where=str(path))
