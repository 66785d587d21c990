"""From one Arrow column to numpy: ids, keys of categories and tags, numbers, dates. Whole columns at once.

Rows in error messages count from 0 and leave a header line out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.errors import DataError
from client.hashing import UNKNOWN_KEY, string_key
from client.schema import Values

_ZONE = r"(Z|[+-]\d\d:?\d\d)$"
_SECONDS_FROM = -62_135_596_800.0  # 0001-01-01
_SECONDS_TO = 253_402_300_800.0  # 10000-01-01


@dataclass(frozen=True)
class Keys:
    """`keys` [N] int64, `UNKNOWN_KEY` where a value is missing; `values`: how they are written in the file."""

    keys: NDArray[np.int64]
    values: Values


def column(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece, dictionaries decoded, strings in one of the two usual layouts."""
    combined = table.column(name).combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # too long for one array of 32-bit offsets
        combined = pa.concat_arrays(pc.cast(combined, _large(combined.type)).chunks)
    return _decoded(combined)


def item_ids(array: pa.Array, where: str) -> NDArray[np.int64]:
    """Item ids [N] int64. Raises DataError: no integers, a null, an id below 0 or above 2^63 - 1."""
    if not pa.types.is_integer(array.type):
        raise DataError(
            f"item ids must be integers, got {array.type}",
            where=where,
            remedy="Number the items (0, 1, 2, ...) and keep your own ids as a category feature.",
        )
    _refuse_nulls(array, where, "an item id")
    ids = _int64(array, where)
    if len(ids) and ids.min() < 0:
        row = int(np.argmax(ids < 0))
        raise DataError(f"item id {ids[row]} in row {row} is negative; ids are 0 to 2^63 - 1", where=where)
    return ids


def id_keys(array: pa.Array, where: str) -> Keys:
    """User ids as keys. Raises DataError: a null, neither integers nor strings, colliding strings."""
    _refuse_nulls(array, where, "a user id")
    return category_keys(array, where)


def category_keys(array: pa.Array, where: str) -> Keys:
    """Keys of a category column: integers as they are, strings hashed.

    Raises DataError: another type, integers beyond int64, the integer that stands for "no value", colliding strings.
    """
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    if pa.types.is_integer(array.type):
        known = _int64(pc.fill_null(array, pa.scalar(0, array.type)), where)
        _refuse_unknown_key(known, where)
        return Keys(np.where(_is_null(array), UNKNOWN_KEY, known), "integer")
    if pa.types.is_null(array.type):
        return Keys(np.full(len(array), UNKNOWN_KEY), "string")
    if not _is_string(array.type):
        raise DataError(f"a category must be integers or strings, got {array.type}", where=where)
    encoded = array.dictionary_encode()
    keys = np.append(string_keys(encoded.dictionary.to_pylist(), where), UNKNOWN_KEY)
    codes = pc.fill_null(encoded.indices, pa.scalar(len(keys) - 1, encoded.indices.type))
    return Keys(keys[codes.to_numpy()], "string")


def string_keys(values: list[str], where: str) -> NDArray[np.int64]:
    """The keys [N] int64 of distinct strings. Raises DataError if two of them share one."""
    keys = np.fromiter(map(string_key, values), np.int64, len(values))
    _refuse_unknown_key(keys, where)
    order = np.argsort(keys)
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(same):
        one, other = values[order[same[0]]], values[order[same[0] + 1]]
        raise DataError(f"{one!r} and {other!r} have the same 64-bit key", where=where, remedy="Rename one of them.")
    return keys


def tag_keys(array: pa.Array, separator: str | None, where: str) -> tuple[NDArray[np.int64], Keys]:
    """Tags in CSR form: offsets [N + 1] int64, and the keys, each row's ascending and distinct.

    Lists of integers or strings, or strings split at `separator`; strings are stripped of white space, empty ones and
    nulls inside are left out. Raises DataError as `category_keys`, and for strings without a separator.
    """
    lengths, flat = tag_values(array, separator, where)
    found = category_keys(flat, where)
    rows = np.repeat(np.arange(len(array)), lengths)
    kept = ~_is_null(flat)
    rows, keys = rows[kept], found.keys[kept]
    order = np.lexsort((keys, rows))
    rows, keys = rows[order], keys[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (np.diff(rows) != 0) | (np.diff(keys) != 0)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(np.bincount(rows[first], minlength=len(array)), out=offsets[1:])
    return offsets, Keys(keys[first], found.values)


def tag_values(array: pa.Array, separator: str | None, where: str) -> tuple[NDArray[np.int64], pa.Array]:
    """How many tags each row has, [N] int64, and the tags behind one another, null where one is empty.

    Takes and raises what `tag_keys` does.
    """
    if _is_string(array.type) or pa.types.is_null(array.type):
        if separator is None:
            raise DataError("tags are strings here", where=where, remedy="Set separator, for example separator: '|'.")
        array = pc.split_pattern(pc.cast(array, pa.large_string()), separator)
    elif separator is not None:
        raise DataError(f"a separator splits strings, the column holds {array.type}", where=where)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise DataError(f"tags must be lists of integers or strings, got {array.type}", where=where)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    flat = _decoded(pc.list_flatten(array))
    if _is_string(flat.type):
        flat = pc.utf8_trim_whitespace(flat)
        flat = pc.if_else(pc.equal(flat, ""), pa.scalar(None, flat.type), flat)
    return lengths, flat


def numbers(array: pa.Array, where: str, *, of: str = "a number feature") -> NDArray[np.float64]:
    """Numbers [N] float64, NaN where missing; `of`: what needs them. Raises DataError: another type, an infinity."""
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (number or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{of} needs numbers, got {kind}", where=where)
    if pa.types.is_boolean(kind):
        array = pc.cast(array, pa.int8())
    values = _float64(pc.cast(array, pa.float64(), safe=False))
    infinite = np.isinf(values)
    if infinite.any():
        raise DataError(f"row {int(np.argmax(infinite))} is infinite", where=where, remedy="Leave it empty or clip it.")
    return values


def seconds(array: pa.Array, date_format: str | None, where: str) -> NDArray[np.float64]:
    """Dates as seconds since 1970-01-01 UTC [N] float64, NaN where missing.

    Timestamps and dates (without a zone: UTC), integers (seconds already), or strings: `date_format` for strptime, else
    ISO 8601 with or without a zone. Raises DataError: another type, a string that is no such date, a year beyond 9999.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_integer(kind):
        values = _float64(pc.cast(array, pa.float64(), safe=False))
    else:
        if _is_string(kind):
            array = _parsed(array, date_format, where)
        elif date_format is not None:
            raise DataError(f"a format reads strings, the column holds {kind}", where=where)
        elif not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise DataError(f"a date feature needs dates, timestamps or strings, got {kind}", where=where)
        values = _float64(pc.cast(_microseconds(array, where), pa.float64(), safe=False)) / 1e6
    beyond = (values < _SECONDS_FROM) | (values >= _SECONDS_TO)
    if beyond.any():
        row = int(np.argmax(beyond))
        raise DataError(
            f"row {row} is {values[row]:.0f} seconds from 1970, beyond the years 1 to 9999",
            where=where,
            remedy="Integers are read as seconds, not milliseconds.",
        )
    return values


def order_times(array: pa.Array, where: str) -> NDArray[np.int64] | NDArray[np.float64]:
    """Values [N] that order interactions: numbers of any unit, timestamps, dates or ISO strings. Refuses nulls."""
    _refuse_nulls(array, where, "a time")
    if pa.types.is_integer(array.type):
        return _int64(array, where)
    if pa.types.is_timestamp(array.type):
        return np.asarray(pc.cast(array, pa.int64()).to_numpy())
    is_floating = pa.types.is_floating(array.type)
    times = numbers(array, where) if is_floating else seconds(array, None, where)
    if np.isnan(times).any():
        row = int(np.argmax(np.isnan(times)))
        raise DataError(f"row {row} is {'NaN' if is_floating else 'blank'}, not a time", where=where)
    return times


def _parsed(array: pa.Array, date_format: str | None, where: str) -> pa.Array:
    """Timestamps in microseconds, UTC, from strings."""
    unit = pa.timestamp("us")
    trimmed = pc.utf8_trim_whitespace(array)
    array = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, array.type), trimmed)
    if date_format is not None:
        parsed = pc.strptime(array, format=date_format, unit="us", error_is_null=True)
        bad = (_is_null(parsed) & ~_is_null(array)) | _is_no_day(array, date_format)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"row {row}, {array[row].as_py()!r}, is not of the format {date_format!r}", where=where)
        return parsed.cast(unit)
    zoned = pc.match_substring_regex(array, _ZONE)
    nothing = pa.scalar(None, array.type)
    try:
        with_zone = pc.cast(pc.if_else(zoned, array, nothing), pa.timestamp("us", "UTC"))
        without = pc.cast(pc.if_else(zoned, nothing, array), unit)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"not an ISO 8601 date: {error}", where=where, remedy="Set format, for example format: '%d-%b-%Y'."
        ) from error
    return pc.coalesce(without, pc.cast(with_zone, unit, safe=False))


def _is_no_day(array: pa.Array, date_format: str) -> NDArray[np.bool_]:
    """[N]: where a month has no such day, which strptime takes for one of the next month: 30 February.

    A month that stands behind the date takes the place of its own, and so does a time zone: in January every day is
    what it says.
    """
    if not re.search(r"(?<!%)(%%)*%[deDF]", date_format):
        return np.zeros(len(array), dtype=np.bool_)
    day, in_january = (
        pc.day(pc.strptime(_followed_by(array, text), format=f"{date_format} {more}", unit="us", error_is_null=True))
        for text, more in (("+0000", "%z"), ("01 +0000", "%m %z"))
    )
    return np.asarray(pc.fill_null(pc.not_equal(day, in_january), False).to_numpy(zero_copy_only=False))


def _followed_by(array: pa.Array, text: str) -> pa.Array:
    return pc.binary_join_element_wise(array, pa.scalar(text, array.type), pa.scalar(" ", array.type))


def _microseconds(array: pa.Array, where: str) -> pa.Array:
    zone = getattr(array.type, "tz", None)
    try:
        exact = pc.cast(array, options=pc.CastOptions(pa.timestamp("us", zone), allow_time_truncate=True))
    except pa.ArrowInvalid as error:  # past int64, where it would begin again from the other end
        raise DataError(f"holds a date beyond the years 1 to 9999: {error}", where=where) from error
    return pc.cast(exact, pa.int64())


def _decoded(array: pa.Array) -> pa.Array:
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    return pc.cast(array, pa.large_string()) if pa.types.is_string_view(array.type) else array  # few functions take one


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.large_list(kind.value_type)
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_null(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))


def _float64(array: pa.Array) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False))


def _int64(array: pa.Array, where: str) -> NDArray[np.int64]:
    try:
        return np.asarray(pc.cast(array, pa.int64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid:
        row = int(pc.index(pc.greater(array, pa.scalar(2**63 - 1, array.type)), True).as_py())
        raise DataError(f"{array[row]} in row {row} is out of int64", where=where) from None


def _refuse_nulls(array: pa.Array, where: str, what: str) -> None:
    if array.null_count:
        raise DataError(
            f"row {int(np.argmax(_is_null(array)))} lacks {what} ({array.null_count:,} rows do)", where=where
        )


def _refuse_unknown_key(keys: NDArray[np.int64], where: str) -> None:
    bad = keys == UNKNOWN_KEY
    if bad.any():
        raise DataError(f"row {int(np.argmax(bad))} is {UNKNOWN_KEY}, the key that stands for no value", where=where)
