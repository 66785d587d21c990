from __future__ import annotations

import pytest

from client.hashing import string_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", -5426141060434712860),
        ("F", -5708784832999130069),
        ("Drama", -3780808780974187119),
        ("Ü", 1870656727519825937),
        ("ü", 3976460501203677525),
    ],
)
def test_golden_keys(text: str, key: int) -> None:
    # As of: printf '%s' TEXT | b2sum -l 64, its bytes read as a little-endian signed integer.
    assert string_key(text) == key
