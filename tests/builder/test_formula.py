"""The grammar of value formulas: what is read, and what is said of what is not."""

from __future__ import annotations

import pytest

from builder.formula import MOST_DEPTH, Call, Expression, Name, Number, linear_factors, names_of, parse_formula

NAMES = ("like", "watch", "popularity")
LIKE, WATCH = Name("like"), Name("watch")


def call(function: str, *arguments: Expression) -> Call:
    return Call(function, arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("like", LIKE),
        ("  (like) ", LIKE),
        ("+like", LIKE),
        ("-like", call("negative", LIKE)),
        ("like + 2 * watch", call("add", LIKE, call("multiply", Number(2.0), WATCH))),
        ("(like + 2) * watch", call("multiply", call("add", LIKE, Number(2.0)), WATCH)),
        ("like - watch - 1", call("subtract", call("subtract", LIKE, WATCH), Number(1.0))),
        ("like / watch / .5", call("divide", call("divide", LIKE, WATCH), Number(0.5))),
        ("-like ** 2", call("negative", call("power", LIKE, Number(2.0)))),
        ("like ** watch ** 2", call("power", LIKE, call("power", WATCH, Number(2.0)))),
        ("log(1 + coalesce(popularity, 0))",
         call("log", call("add", Number(1.0), call("coalesce", Name("popularity"), Number(0.0))))),
        ("max(like, min(watch, 1e-3))", call("max", LIKE, call("min", WATCH, Number(0.001)))),
    ],
)  # fmt: skip
def test_read(text: str, expected: Expression) -> None:
    assert parse_formula(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("like", (1.0, 0.0)),
        ("0.7 * like + watch * 0.25", (0.7, 0.25)),
        ("-(like - watch / 2) * (3 - 1) + 1", (-2.0, 1.0)),
        ("like + (like - 3 * watch) + log(popularity) * 2", (2.0, -3.0)),
        ("2 * (like + popularity) - watch", (2.0, -1.0)),
        ("0.7 * like + 0.3 * watch * popularity", None),
        ("like * watch", None),
        ("log(like)", None),
        ("1 / like", None),
        ("like ** 2", None),
        ("min(like, watch)", None),
        ("popularity / 2", None),
        ("like - like + 0 * watch", None),
        ("like / 0", None),
    ],
)
def test_factors_of_a_weighted_sum(text: str, expected: tuple[float, float] | None) -> None:
    assert linear_factors(parse_formula(text, NAMES), ("like", "watch")) == expected


def test_names_as_often_as_they_occur() -> None:
    assert list(names_of(parse_formula("watch * (like - watch) + 1", NAMES))) == ["watch", "like", "watch"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no formula"),
        ("like +", "'like \\+' is no formula: invalid syntax"),
        ("like like", "is no formula"),
        ("\0", "is no formula"),
        ("(" * 100_000, "is no formula"),
        ("like + lik", "column 8: unknown name 'lik'; expected one of like, popularity, watch"),
        ("log(like, 2)", "column 1: log takes 1 argument, got 2"),
        ("2 * max(like)", "column 5: max takes 2 arguments, got 1"),
        ("sin(like)", "column 1: unknown function 'sin'; expected one of abs, coalesce, exp"),
        ("like.real", "column 1: expected a number, a name, a function"),
        ("like if watch else 0", "column 1: expected a number"),
        ("like > watch", "column 1: expected a number"),
        ("like // 2", "column 1: expected a number"),
        ("like @ watch", "column 1: expected a number"),
        ("~like", "column 1: expected a number"),
        ("[like]", "column 1: expected a number"),
        ("like['x']", "column 1: expected a number"),
        ("__import__('os')", "column 1: unknown function '__import__'"),
        ("(lambda: like)()", "column 2: expected a number|column 1: expected a number"),
        ("log(x=like)", "column 1: expected a number"),
        ("like + 'a'", "column 8: got 'a', expected a finite number"),
        ("like + True", "column 8: got True, expected a finite number"),
        ("like + 1e999", "column 8: got 1e309, expected a finite number"),
        ("like + 1j", "column 8: got 1j, expected a finite number"),
        ("like + " + "9" * 400, "column 8: got 9{20}, expected a finite number"),
        ("1 + 2", "'1 \\+ 2' names no task and no item feature"),
        ("-" * (MOST_DEPTH + 1) + "like", f"expected at most {MOST_DEPTH} operations within each other"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_formula(text, NAMES)


def test_the_deepest_formula() -> None:
    parse_formula("-" * MOST_DEPTH + "like", NAMES)
