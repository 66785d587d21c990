"""Checks and conversions of single values, shared by requests and filters. `where` names the place in messages."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import MAXYEAR, MINYEAR, date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.errors import InvalidValue, invalid_value
from client.hashing import UNKNOWN_KEY, string_key
from client.schema import Values

INT64_MAX = 2**63 - 1
MOST_SECONDS = 1_000_000_000  # of a timeout: gRPC takes ten times as many for none at all
FLOAT32_MAX = float(np.finfo(np.float32).max)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
_INTEGERS = (int, np.integer, np.bool_)
_IDS = (int, np.integer)
_NUMBERS = (int, float, np.integer, np.floating, np.bool_)
_HEADER_NAME = re.compile(r"[A-Za-z0-9._-]+")


def integer_key(where: str, value: Any) -> int:
    """The key of an integer category: itself; a bool is 1 or 0. Raises `InvalidValue`, also for a float like 3.0."""
    if type(value) is int and UNKNOWN_KEY < value <= INT64_MAX:
        return value
    if isinstance(value, _INTEGERS):
        key = int(value)
        if UNKNOWN_KEY < key <= INT64_MAX:
            return key
        raise invalid_value(where, value, "an integer above -2**63 and below 2**63")
    if isinstance(value, float | np.floating) and math.isnan(value):
        raise invalid_value(where, value, "an integer; NaN is none, leave an unknown value out")
    raise invalid_value(where, value, "an integer")


# Filters and users repeat the same strings: 0.1 us instead of 0.7.
_remembered_key = lru_cache(maxsize=8192)(string_key)


def text_key(where: str, value: Any) -> int:
    """The key of a string category, see `client.hashing.string_key`. Raises `InvalidValue`."""
    if not isinstance(value, str):
        raise invalid_value(where, value, "a string")
    try:
        return _remembered_key(value)
    except UnicodeEncodeError:
        raise invalid_value(where, value, "text that UTF-8 can write (this has a lone surrogate)") from None


def key_function(values: Values | None) -> Callable[[str, Any], int]:
    """What turns a value of a category or tags feature into its key."""
    return text_key if values == "string" else integer_key


def number(where: str, value: Any) -> float:
    """A number as float64; a bool is 1 or 0, infinities pass. Raises `InvalidValue` for NaN and what is no number."""
    if type(value) is float and value == value:
        return value + 0.0  # -0.0 becomes 0.0
    if type(value) is int and -INT64_MAX <= value <= INT64_MAX:
        return float(value)
    if isinstance(value, _NUMBERS):
        try:
            result = float(value)
        except OverflowError:
            raise invalid_value(where, value, "a number within float64") from None
        if result == result:
            return result + 0.0
        raise invalid_value(where, value, "a number, not NaN")
    raise invalid_value(where, value, "a number")


def instant(where: str, value: Any) -> float:
    """A date as seconds since 1970-01-01 UTC.

    Takes datetime, date, numpy.datetime64 and ISO 8601 strings, of the years 1 to 9999. Without a time zone it is UTC;
    without a time it is midnight. Plain numbers are refused: 1990 would be a second of 1970. Raises `InvalidValue`.
    """
    moment = value
    if isinstance(moment, np.datetime64):
        if np.isnat(moment):
            raise invalid_value(where, value, "a date, not NaT")
        if not MINYEAR <= int(moment.astype("datetime64[Y]").astype(np.int64)) + 1970 <= MAXYEAR:
            raise invalid_value(where, value, f"a date of the years {MINYEAR} to {MAXYEAR}, as Python's are")
        return int(moment.astype("datetime64[us]").astype(np.int64)) / 1_000_000
    if isinstance(moment, str):
        try:
            # Python 3.10 does not read the Z that most systems write.
            moment = datetime.fromisoformat(f"{moment[:-1]}+00:00" if moment.endswith(("Z", "z")) else moment)
        except ValueError:
            raise invalid_value(where, value, "an ISO 8601 date such as 2024-01-31T12:00:00Z") from None
    if isinstance(moment, datetime):
        if moment != moment:  # pandas.NaT is an instance of datetime
            raise invalid_value(where, value, "a date, not NaT")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return ((moment - EPOCH) // MICROSECOND) / 1_000_000
    if isinstance(moment, date):
        return float((moment - EPOCH.date()).days * 86_400)
    raise invalid_value(where, value, "a datetime, a date, a numpy.datetime64 or an ISO 8601 string")


def seconds(timeout: float) -> float:
    """A timeout. Raises `InvalidValue`."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MOST_SECONDS:
        raise invalid_value("timeout", timeout, f"seconds, above 0 and at most {MOST_SECONDS:,}")
    return float(timeout)


def version_text(version: int | None) -> str:
    """A model version as it travels, "" for None. Raises `InvalidValue`."""
    if version is None:
        return ""
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= INT64_MAX:
        raise invalid_value("version", version, "the number of a version of the model, or None for the server's choice")
    return str(version)


def most_filter_words(words: int | None) -> int:
    """A client's own bound of filter programs; none of its own for None. Raises `InvalidValue`."""
    if words is None:
        return INT64_MAX
    if isinstance(words, bool) or not isinstance(words, int) or words < 2:
        raise invalid_value("max_filter_words", words, "a whole number of at least 2, or None for the artifact's")
    return words


def header_fields(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers with names in lower case, as HTTP/2 wants them. Raises `InvalidValue`."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise invalid_value("headers", headers, "a mapping of names to values")
    fields = {}
    for name, value in headers.items():
        name_is_fine = isinstance(name, str) and _HEADER_NAME.fullmatch(name)
        if not name_is_fine or name.lower().startswith("grpc-") or name.lower().endswith("-bin"):
            raise invalid_value(
                "headers", name, "a name of letters, digits, - _ and ., neither beginning with grpc- nor ending in -bin"
            )
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            # Not shown: it may be a key.
            raise InvalidValue(f"headers[{name!r}]: got {type(value).__name__}, expected printable ASCII text")
        fields[name.lower()] = value
    return fields


def item_ids(where: str, values: Iterable[Any], newest: int | None = None) -> NDArray[np.int64]:
    """Item ids as [n] int64, see `id_bytes`."""
    return np.frombuffer(id_bytes(where, values, newest), np.int64)


def id_bytes(where: str, values: Iterable[Any], newest: int | None = None) -> bytes:
    """Item ids as the bytes of [n] int64. With `newest`, only that many from the end are read and returned.

    Raises `InvalidValue` if `values` is not a flat iterable or an id is not an integer in [0, 2**63).
    """
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise invalid_value(where, values, f"one dimension of item ids, not shape {values.shape}")
        if values.dtype.kind in "iu" and not isinstance(values, np.ma.MaskedArray):  # a list says what is masked
            first = 0 if newest is None else max(0, len(values) - newest)
            ids = values[first:]
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > INT64_MAX):
                raise _bad_id(where, ids.tolist(), first)
            return ids.astype(np.int64).tobytes()
        values = values.tolist() or ()
    if not isinstance(values, (list, tuple)):
        if isinstance(values, (str, bytes)):
            raise invalid_value(where, values, "a sequence of item ids")
        try:
            values = list(values)
        except TypeError:
            raise invalid_value(where, values, "a sequence of item ids") from None
    first = 0
    if newest is not None and len(values) > newest:
        first = len(values) - newest
        values = values[first:]
    if not values:
        return b""
    try:
        packed = words(len(values)).pack(*values)
        # Of what is packed as an integer only a bool is none. It equals 0 or 1: most lists need no look at the types.
        has_bool = not _BOOLS.isdisjoint(values) and bool in map(type, values)
    except (struct.error, TypeError):  # no integer, or none of int64; TypeError: an array in the list
        raise _bad_id(where, values, first) from None
    if has_bool or not packed[7::8].isascii():  # the highest bytes: above 127 for a negative number
        raise _bad_id(where, values, first)
    return packed


@lru_cache(maxsize=1024)
def words(count: int) -> struct.Struct:
    """Packs so many int64: into the bytes of an array in a third of the time that NumPy takes."""
    return struct.Struct(f"<{count}q")


_BOOLS = frozenset((False, True))


def _bad_id(where: str, values: Iterable[Any], first: int) -> InvalidValue:
    for position, value in enumerate(values, first):
        if isinstance(value, bool) or not isinstance(value, _IDS) or not 0 <= int(value) <= INT64_MAX:
            return invalid_value(f"{where}[{position}]", value, "an item id: an integer from 0 to 2**63 - 1")
    raise AssertionError("no bad id")  # pragma: no cover - the caller found one
