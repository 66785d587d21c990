from __future__ import annotations

import copy
import datetime
from typing import Any

import numpy as np
import pytest

from client import AllOf, And, AnyOf, Condition, F, InvalidValue, Not, Or, Range, Unknown, everything
from client.filters.builder import Field

A, B, C = AnyOf("a", (1,)), AnyOf("b", (2,)), Unknown("c")


@pytest.mark.parametrize(
    ("built", "condition"),
    [
        (F.x == "a", AnyOf("x", ("a",))),
        (F["some name"] == 3, AnyOf("some name", (3,))),
        (F.x != 3, Not(AnyOf("x", (3,)))),
        (F.x.any_of("a", "b"), AnyOf("x", ("a", "b"))),
        (F.x.any_of(), AnyOf("x", ())),
        (F.x.all_of("a", "b"), AllOf("x", ("a", "b"))),
        (F.x.is_in(value for value in "ab"), AnyOf("x", ("a", "b"))),
        (F.x.is_in({7}), AnyOf("x", (7,))),
        (F.x.is_in(np.array([1, 2])), AnyOf("x", (1, 2))),
        (F.x.is_in(np.array(["2024-01-01"], "datetime64[D]")), AnyOf("x", (np.datetime64("2024-01-01"),))),
        (F.x.not_in([1]), Not(AnyOf("x", (1,)))),
        (F.x < 1, Range("x", high=1, high_open=True)),
        (F.x <= 1, Range("x", high=1)),
        (F.x > 1, Range("x", low=1, low_open=True)),
        (F.x >= 1, Range("x", low=1)),
        (1 < F.x, Range("x", low=1, low_open=True)),  # noqa: SIM300
        (np.int64(1) >= F.x, Range("x", high=1)),
        (np.float32(0.5) <= F.x, Range("x", low=0.5)),
        (F.x == np.int32(5), AnyOf("x", (5,))),
        (F.x.between(1, 2), Range("x", 1, 2)),
        (F.x >= datetime.date(2024, 1, 1), Range("x", datetime.date(2024, 1, 1))),
        (F.x.is_unknown(), Unknown("x")),
        (F.x == True, AnyOf("x", (True,))),  # noqa: E712
        (A & B, And((A, B))),
        (A | B, Or((A, B))),
        (~A, Not(A)),
        (~~A, A),
        (A & B & C, And((A, B, C))),
        (A & (B & C), And((A, B, C))),
        (A | (B | C), Or((A, B, C))),
        (A & B | C, Or((And((A, B)), C))),
        (everything(), And(())),
        (everything() & A, A),
        (A & everything(), A),
        (everything() | A, Or((And(()), A))),
        (Or(()) | A, A),
    ],
    ids=str,
)
def test_what_an_expression_builds(built: Condition, condition: Condition) -> None:
    assert built == condition
    assert hash(built) == hash(condition)


def test_numpy_scalars_become_plain_values() -> None:
    (value,) = (F.x == np.int64(5)).values  # type: ignore[attr-defined]
    assert type(value) is int
    (value,) = (F.x == np.str_("a")).values  # type: ignore[attr-defined]
    assert type(value) is str


@pytest.mark.parametrize("value", [None, float("nan"), np.float64("nan"), [1], (1,), {1}, np.array([1]), 1j, b"x", F.y])
def test_what_is_no_value_is_refused(value: Any) -> None:
    operations = [
        lambda: F.x == value,
        lambda: F.x != value,
        lambda: F.x < value,
        lambda: F.x >= value,
        lambda: F.x.any_of(value),
        lambda: F.x.all_of("a", value),
        lambda: F.x.is_in([value]),
        lambda: F.x.between(1, value),
    ]
    for operation in operations:
        with pytest.raises(InvalidValue, match=r"F\.x .*: got .*, expected "):
            operation()


def test_remedies() -> None:
    with pytest.raises(InvalidValue, match=r"F\.x\.is_unknown\(\)"):
        F.x == None  # noqa: B015, E711
    with pytest.raises(InvalidValue, match=r"F\.x\.is_in\(values\)"):
        F.x == [1, 2]  # noqa: B015
    with pytest.raises(InvalidValue, match="two features cannot be compared"):
        F.x == F.y  # noqa: B015
    with pytest.raises(InvalidValue, match=r"for one value write F\.x == 'Drama'"):
        F.x.is_in("Drama")
    with pytest.raises(InvalidValue, match="expected an iterable of values"):
        F.x.is_in(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("misuse", "remedy"),
    [
        (lambda: bool(A), r"& \| ~ instead of and, or, not"),
        (lambda: A and B, r"& \| ~ instead of and, or, not"),
        (lambda: not A, r"& \| ~ instead of and, or, not"),
        (lambda: 1 <= F.x <= 2, r"between\(1990, 2000\)"),
        (lambda: A & F.x >= 3, "parentheses"),
        (lambda: F.x & A, "parentheses"),
        (lambda: 3 & F.x, "parentheses"),
        (lambda: A | True, "parentheses"),
        (lambda: ~F.x, "compare it"),
        (lambda: bool(F.x), "compare it"),
        (lambda: "Drama" in F.x, "write F.x == 'Drama'"),
        (lambda: list(F.x), "cannot be iterated"),
        (lambda: F[3], "name of an item feature"),
        (lambda: hash(F.x), "unhashable"),
        (lambda: And([A]), "in a tuple"),
        (lambda: Not(3), "conditions"),
        (lambda: AnyOf("x", "Drama"), "in a tuple"),
    ],
)
def test_misuse_is_a_type_error_with_a_remedy(misuse: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy):
        misuse()


def test_conditions_are_immutable() -> None:
    with pytest.raises(AttributeError):
        A.feature = "b"  # type: ignore[attr-defined, misc]


def test_names() -> None:
    assert repr(F.year) == "F.year"
    assert repr(F["release year"]) == "F['release year']"
    assert repr(F["class"]) == "F['class']"
    assert isinstance(F.between, Field)  # a feature may have the name of a method
    with pytest.raises(AttributeError):
        F.__wrapped__  # noqa: B018
    assert repr(copy.copy(F)) == "F"
