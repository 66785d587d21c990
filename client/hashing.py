"""The one function that turns a string value into the 64-bit key that travels and is indexed."""

from __future__ import annotations

from hashlib import blake2b

UNKNOWN_KEY = -(2**63)
"""Stands for "no value" of a category on the wire; never the key of a value."""


def string_key(value: str) -> int:
    """Return the signed 64-bit key of a string.

    BLAKE2b (RFC 7693) with an 8-byte digest of the UTF-8 bytes, read as a little-endian signed integer. No case
    folding, no Unicode normalisation. Collisions inside one feature are refused when an artifact is built.
    """
    return int.from_bytes(blake2b(value.encode("utf-8"), digest_size=8).digest(), "little", signed=True)
