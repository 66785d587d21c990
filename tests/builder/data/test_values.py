import datetime
import re

import numpy as np
import pyarrow as pa
import pytest

from builder.data import values
from builder.errors import DataError
from client.hashing import UNKNOWN_KEY, string_key

UTC = datetime.timezone.utc


def fails(what: str, function: object, *arguments: object) -> None:
    assert callable(function)
    with pytest.raises(DataError, match=what):
        function(*arguments, "FILE")


def test_item_ids() -> None:
    ids = values.item_ids(pa.array([3, 2**63 - 1, 0], pa.uint64()), "FILE")
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 2**63 - 1, 0]
    fails("must be integers, got string", values.item_ids, pa.array(["a"]))
    fails("must be integers, got double", values.item_ids, pa.array([1.0]))
    fails(r"FILE: row 1 lacks an item id \(2 rows do\)", values.item_ids, pa.array([1, None, None]))
    fails("item id -5 in row 2 is negative", values.item_ids, pa.array([1, 2, -5]))
    fails("9223372036854775808 in row 1 is out of int64", values.item_ids, pa.array([1, 2**63], pa.uint64()))


def test_category_keys() -> None:
    found = values.category_keys(pa.array([5, None, -2], pa.int16()), "FILE")
    assert (found.keys.tolist(), found.values) == ([5, UNKNOWN_KEY, -2], "integer")
    found = values.category_keys(pa.array([True, False, None]), "FILE")
    assert (found.keys.tolist(), found.values) == ([1, 0, UNKNOWN_KEY], "integer")
    expected = [string_key("b"), UNKNOWN_KEY, string_key(""), string_key("b")]
    for kind in (pa.string(), pa.large_string()):
        found = values.category_keys(pa.array(["b", None, "", "b"], kind), "FILE")
        assert (found.keys.tolist(), found.values) == (expected, "string")
    for array in (pa.array(["b", None, "", "b"]).dictionary_encode(), pa.array(["b", None, "", "b"], pa.string_view())):
        column = values.column(pa.table({"c": array}), "c")
        assert values.category_keys(column, "FILE").keys.tolist() == expected
    assert values.category_keys(pa.nulls(2), "FILE").keys.tolist() == [UNKNOWN_KEY] * 2
    fails("must be integers or strings, got double", values.category_keys, pa.array([1.5]))
    fails("row 1 is -9223372036854775808, the key that", values.category_keys, pa.array([1, UNKNOWN_KEY]))
    fails("lacks a user id", values.id_keys, pa.array(["a", None]))


def test_colliding_strings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "string_key", len)
    assert values.string_keys(["a", "bb"], "FILE").tolist() == [1, 2]
    fails("'bb' and 'cc' have the same 64-bit key", values.string_keys, ["a", "bb", "cc"])


def test_tags() -> None:
    rows = [[3, 1, 3], None, [], [None, 2]]
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64())):
        offsets, found = values.tag_keys(pa.array(rows, kind), None, "FILE")
        assert offsets.tolist() == [0, 2, 2, 2, 3]
        assert (found.keys.tolist(), found.values) == ([1, 3, 2], "integer")
    strings = pa.array(["b | a|b", None, "", "| a"])
    offsets, found = values.tag_keys(strings, "|", "FILE")
    assert offsets.tolist() == [0, 2, 2, 2, 3]
    a, b = string_key("a"), string_key("b")
    assert (found.keys.tolist(), found.values) == ([*sorted([a, b]), a], "string")
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"]))
    for flat in (dictionary, pa.array(["a", "b", "a"], pa.string_view())):
        offsets, found = values.tag_keys(pa.ListArray.from_arrays(pa.array([0, 1, 3]), flat), None, "FILE")
        assert found.keys.tolist() == [a, *sorted([a, b])]
    none, found = values.tag_keys(pa.nulls(2), "|", "FILE")
    assert (none.tolist(), found.keys.tolist(), found.values) == ([0, 0, 0], [], "string")
    fails("tags are strings here", values.tag_keys, strings, None)
    fails("a separator splits strings", values.tag_keys, pa.array([[1]]), "|")
    fails("tags must be lists", values.tag_keys, pa.array([1]), None)


def test_numbers() -> None:
    for array in (pa.array([1, None, 3], pa.uint8()), pa.array([1.0, np.nan, 3.0], pa.float32())):
        found = values.numbers(array, "FILE")
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, [1, np.nan, 3])
    np.testing.assert_array_equal(values.numbers(pa.array([True, None]), "FILE"), [1, np.nan])
    np.testing.assert_array_equal(values.numbers(pa.nulls(1), "FILE"), [np.nan])
    fails("row 1 is infinite", values.numbers, pa.array([0, -np.inf]))
    fails("needs numbers, got string", values.numbers, pa.array(["1"]))


def test_dates() -> None:
    day = datetime.datetime(1995, 1, 31, tzinfo=UTC).timestamp()
    for array in (
        pa.array([datetime.date(1995, 1, 31), None]),
        pa.array([datetime.date(1995, 1, 31), None], pa.date64()),
        pa.array([datetime.datetime(1995, 1, 31), None], pa.timestamp("ns")),
        pa.array([datetime.datetime(1995, 1, 31), None], pa.timestamp("s", "Asia/Tokyo")),  # the instant is UTC
        pa.array([int(day), None]),
        pa.array(["1995-01-31", " "]),
        pa.array(["1995-01-31T00:00:00", None]),
        pa.array(["1995-01-31T00:00:00Z", None]),
        pa.array(["1995-01-31T02:00:00+02:00", None], pa.large_string()),
    ):
        np.testing.assert_array_equal(values.seconds(array, None, "FILE"), [day, np.nan])
    mixed = values.seconds(pa.array(["1995-01-31", "1995-01-31T01:00:00+01:00", "1969-12-31"]), None, "FILE")
    assert mixed.tolist() == [day, day, -86_400]
    assert values.seconds(pa.array(["1995-01-31T00:00:00.25"]), None, "FILE").tolist() == [day + 0.25]
    parsed = values.seconds(pa.array(["31-Jan-1995", None, ""]), "%d-%b-%Y", "FILE")
    np.testing.assert_array_equal(parsed, [day, np.nan, np.nan])
    fails("row 1, '1995', is not of the format", values.seconds, pa.array(["31-Jan-1995", "1995"]), "%d-%b-%Y")
    fails("not an ISO 8601 date: .*31.1.95", values.seconds, pa.array(["31.1.95"]), None)
    fails("a format reads strings", values.seconds, pa.array([1]).cast(pa.timestamp("s")), "%Y")
    fails("beyond the years", values.seconds, pa.array([0, 791_510_400_000]), None)
    for far in (
        pa.scalar(2**63 - 1, pa.timestamp("ms")),
        pa.scalar(2**44, pa.timestamp("s")),
        pa.scalar(-(2**31), pa.date32()),
    ):
        fails("beyond the years 1 to 9999: .*out of bounds", values.seconds, pa.array([far]), None)
    fails("needs dates", values.seconds, pa.array([1.5]), None)


@pytest.mark.parametrize("date_format", ["%Y-%m-%d", "%e %B %Y", "100%% %d.%m.%y %H:%M %z", "%Y%m%d"])
def test_every_day_of_a_format_and_no_other(date_format: str) -> None:
    """February, leap years and zones that turn the last of a month into the first of the next."""
    days = [datetime.datetime(1999, 12, 1, tzinfo=UTC) + datetime.timedelta(days=day) for day in range(500)]
    if "%z" in date_format:
        days = [day.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=day.day % 25 - 12))) for day in days]
    written = [day.strftime(date_format) for day in days]
    assert values.seconds(pa.array(written), date_format, "FILE").tolist() == [day.timestamp() for day in days]
    for month, day in ((2, 30), (2, 31), (4, 31), (11, 31), (2, 29)):
        first = datetime.datetime(2001, month, 1, tzinfo=UTC)
        text = first.strftime(date_format.replace("%d", str(day)).replace("%e", str(day)))
        fails(
            re.escape(f"row 1, '{text}', is not of the format"),
            values.seconds,
            pa.array([written[0], text]),
            date_format,
        )


def test_a_date_in_one_directive_is_checked_too() -> None:
    day = datetime.datetime(2024, 2, 29, tzinfo=UTC).timestamp()
    for date_format, right, wrong in (("%F", "2024-02-29", "2023-02-29"), ("%D", "02/29/24", "02/30/24")):
        assert values.seconds(pa.array([right]), date_format, "FILE").tolist() == [day]
        fails(f"row 0, '{wrong}', is not of the format", values.seconds, pa.array([wrong]), date_format)


def test_days_of_the_year_are_days() -> None:
    for kind in (pa.string(), pa.large_string()):
        found = values.seconds(pa.array(["2024-366", None], kind), "%Y-%j", "FILE")
        np.testing.assert_array_equal(found, [datetime.datetime(2024, 12, 31, tzinfo=UTC).timestamp(), np.nan])


def test_order_times() -> None:
    nanoseconds = 1_700_000_000_123_456_789  # float64 would lose the last digits
    assert values.order_times(pa.array([nanoseconds], pa.timestamp("ns")), "FILE").tolist() == [nanoseconds]
    assert values.order_times(pa.array([nanoseconds]), "FILE").tolist() == [nanoseconds]
    assert values.order_times(pa.array([0.5]), "FILE").tolist() == [0.5]
    assert values.order_times(pa.array(["1970-01-02"]), "FILE").tolist() == [86_400]
    fails("row 0 is NaN", values.order_times, pa.array([np.nan]))
    fails("row 1 is blank, not a time", values.order_times, pa.array(["1970-01-02", " "]))
    fails("row 1 lacks a time", values.order_times, pa.array([1, None]))
