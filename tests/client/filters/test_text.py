import pytest

from client import F, InvalidValue, everything, item_in
from client.filters.text import parse_filter


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('F.genres.any_of("Drama", "War")', F.genres.any_of("Drama", "War")),
        ("F.year >= 1990", F.year >= 1990),
        ("1990 <= F.year", F.year >= 1990),
        ("1990 < F.year <= 2000", (F.year > 1990) & (F.year <= 2000)),
        ('F["two words"] == -3', F["two words"] == -3),
        ("~F.title_id.is_in([1, 2])", ~F.title_id.is_in([1, 2])),
        ("F.a.not_in({1}) | F.b.is_unknown()", F.a.not_in([1]) | F.b.is_unknown()),
        ("F.a == 1 & F.b == 2", None),
        ('(F.a == 1) & (F.b != "x") | F.c.between(0.5, 2e3)', (F.a == 1) & (F.b != "x") | F.c.between(0.5, 2e3)),
        (" F.released >= '2020-01-01' ", F.released >= "2020-01-01"),
        ("F.tags.all_of(1, 2)", F.tags.all_of(1, 2)),
        ("everything()", everything()),
        ("item_in([3, 1])", item_in([3, 1])),
        ("~item_in({7}) & (F.a == 1)", ~item_in([7]) & (F.a == 1)),
    ],
)
def test_reads_the_python_form(text: str, condition: object) -> None:
    if condition is None:
        with pytest.raises(InvalidValue):
            parse_filter(text)
    else:
        assert parse_filter(text) == condition


@pytest.mark.parametrize(
    "text",
    [
        str(item_in([2**63 - 1, 0]) | ~item_in([])),
        str(F.a.any_of("x", 'quo"te') & ~(F.b >= 3)),
        str((F["a b"] == 1) | F.c.is_unknown() | (F.d < 1.5)),
    ],
)
def test_reads_what_conditions_print(text: str) -> None:
    assert str(parse_filter(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("F.year >=", "cannot be read at character"),
        ("F.year", "expected a condition on a feature"),
        ("F.a == 1 and F.b == 2", "write &, | and ~"),
        ("not F.a == 1", "write &, | and ~"),
        ("F.a in [1]", "is_in"),
        ("F.a == F.b", "expected a literal"),
        ("G.a == 1", "expected a feature"),
        ("genre == 'War'", r"'genre' at character 1: expected a feature: F\.genre or F\[\"genre\"\]"),
        ("'War' == genre", r"'genre' at character 10: expected a feature: F\.genre"),
        ("F.a == true", "a number, True, False"),
        ("F.a <= 10 & F.b == 1", r"'10 & F\.b' at character 8: put comparisons in parentheses"),
        ("(F.a <= 10) & F.b == 1", "put comparisons in parentheses"),
        ("F.a.__class__('x')", "expected one of"),
        ("__import__('os').system('true')", "expected one of"),
        ("F.a == __import__('os')", "expected a literal"),
        ("F.a.between(1)", "between"),
        ("F.a.is_in(values=[1])", "without names"),
        ("F.a == None", "is_unknown"),
        ("1 == 2", "expected a feature"),
        ("item_in(1)", "sequence of item ids"),
        ("item_in([1], [2])", "expected one of"),
        ("item_in(ids=[1])", "expected one of"),
        ("item_in([-1])", "an item id"),
        ("item_in([1.0])", "an item id"),
        ("item_in([x])", "expected a literal"),
        ("~" * 5000 + "F.a.is_unknown()", "nested too deeply|cannot be read"),
        ("(" * 500 + "F.a == 1" + ")" * 500, "cannot be read"),
    ],
)
def test_refuses_everything_else(text: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        parse_filter(text)


@pytest.mark.parametrize(
    "text", ["F.a == " + "9" * 5000, "F.a.is_in([" + "1, " * 5000, "F.a.among(" + "1, " * 5000 + ")"]
)
def test_messages_show_the_beginning_of_long_texts(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"\.\.\.") as caught:
        parse_filter(text)
    assert len(str(caught.value)) < 300


def test_a_long_chain_is_no_depth() -> None:
    text = " | ".join(f"(F.a == {value})" for value in range(1500))
    condition = parse_filter(text)
    assert str(condition) == text
    assert parse_filter(f"({text}) & (F.b == 1)") == condition & (F.b == 1)
