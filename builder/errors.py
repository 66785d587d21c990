"""Errors a person can act on. The command line prints their message without a traceback.

BuilderError
├── ConfigError     retrieval.yaml: unreadable, an unknown key, a value of the wrong type or range
├── DataError       a data file: missing, a missing column, a value of the wrong type, ids that cannot be
├── DownloadError   a public dataset could not be fetched or is not the file it should be
└── OplibError      the operator library is missing and cannot be built
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BuilderError(Exception):
    """Says what is wrong, where, and what to do about it.

    `what`: the fault, with what was got and what was expected. `where`: file, field, row. `remedy`: what to do.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__((f"{where}: " if where else "") + what + (f"\n  {remedy}" if remedy else ""))


class ConfigError(BuilderError):
    """retrieval.yaml cannot be read or says something that cannot be."""


class DataError(BuilderError):
    """A data file is missing or holds something that cannot be used."""


class DownloadError(BuilderError):
    """A public dataset could not be downloaded, or its checksum differs."""


class OplibError(BuilderError):
    """The operator library is missing and cannot be built; the message says what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one and the list of all."""
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else 'none'}."
