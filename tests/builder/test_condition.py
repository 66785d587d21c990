import numpy as np
import pytest

from builder.condition import Condition, parse_condition


@pytest.mark.parametrize(
    ("text", "written", "holds"),
    [
        ("rating >= 4", "rating >= 4", [False, True, True, False]),
        (" rating>4 ", "rating > 4", [False, False, True, False]),
        ("rating <= 4.0", "rating <= 4", [True, True, False, False]),
        ("rating < 4", "rating < 4", [True, False, False, False]),
        ("rating == 4", "rating == 4", [False, True, False, False]),
        ("rating != 4", "rating != 4", [True, False, True, False]),
        ("rating > -1", "rating > -1", [True, True, True, False]),
        ("rating < 1700000001", "rating < 1700000001", [True, True, True, False]),
        ("rating < 1e300", "rating < 1e+300", [True, True, True, False]),
    ],
)
def test_comparisons(text: str, written: str, holds: list[bool]) -> None:
    condition = parse_condition(text)
    assert str(condition) == written
    assert condition.column == "rating"
    assert condition.holds(np.array([3.0, 4.0, 4.5, np.nan])).tolist() == holds
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize("always", [True, "true"])
def test_always(always: str | bool) -> None:
    assert parse_condition(always) == Condition(None)
    assert str(Condition(None)) == "true"


@pytest.mark.parametrize(
    "text",
    [False, "", "rating", "4 <= rating", "1 < rating < 4", "rating >= 4 and seconds > 1", "rating = 4", "f(x) > 1",
     "rating in [1]", "__import__('os')", "(" * 10_000],
)  # fmt: skip
def test_refused(text: str | bool) -> None:
    with pytest.raises(ValueError, match=r"got .*, expected true, or a column compared with a number"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["rating >= four", "rating >= '4'", "rating >= 1e999", "rating >= True"])
def test_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        parse_condition(text)
