from __future__ import annotations

import inspect
import pickle

import pytest

import client
from client import errors


def _all_errors() -> list[type[Exception]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    return [error for error in found if error.__module__ == "client.errors"]


def test_one_root_and_every_error_is_public_and_drawn() -> None:
    for error in _all_errors():
        assert issubclass(error, client.SilverTritonError)
        assert error.__name__ in client.__all__
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("error", [client.InvalidValue("no"), client.RowStatusError("bad row", client.Status.HISTORY)])
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_builtin_bases() -> None:
    assert issubclass(client.RequestError, ValueError)
    assert issubclass(client.SchemaError, ValueError)
    assert issubclass(client.ClientClosed, RuntimeError)


def test_unknown_name_suggests_the_closest_or_lists() -> None:
    assert str(errors.unknown_name("task", "clik", ["click", "watch"])) == "unknown task 'clik'; did you mean 'click'?"
    assert str(errors.unknown_name("task", 7, ["click"])) == "unknown task 7; this artifact has click"
    assert str(errors.unknown_name("task", "x", [])) == "unknown task 'x'; this artifact has none"
    many = [f"feature{n}" for n in range(20)]
    assert str(errors.unknown_name("f", "zz", many)).endswith("feature11, ...")


def test_long_values_are_cut() -> None:
    assert len(str(errors.invalid_value("here", "x" * 10_000, "less"))) < 130
