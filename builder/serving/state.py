"""`.server.json`: where the server of a repository is reached, and the key of its administration.

REPOSITORY/.server.json is there while `builder serve` runs, readable by its user only. Commands on the same host that
administer the server find address and key there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from builder.errors import BuilderError

STATE_FILE = ".server.json"
KEY_VARIABLE = "SILVERTRITON_ADMIN_KEY"
KEY_NAME = "admin-key"
_KEY = re.compile(r"[A-Za-z0-9._~-]{16,256}")  # nothing that an option of tritonserver would take apart


@dataclass(frozen=True, slots=True)
class ServerState:
    """`url`, `http`, `metrics`: host:port of what is switched on. `pid`: of tritonserver."""

    url: str | None
    http: str | None
    metrics: str | None
    pid: int
    admin_key: str

    def write(self, path: Path) -> None:
        """Write the file whole or not at all, for its owner only. Raises BuilderError."""
        try:
            descriptor, partial = tempfile.mkstemp(prefix=path.name, dir=path.parent)  # of mode 0600
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self), file, indent=1)
            os.replace(partial, path)
        except OSError as error:
            raise BuilderError(f"cannot write {path}: {error.strerror}") from error


def read_state(repository: Path) -> ServerState:
    """The server that serves a repository. Raises BuilderError if none does."""
    path = repository / STATE_FILE
    remedy = f"Start one with: builder serve --repository {repository}"
    try:
        state = ServerState(**json.loads(path.read_text()))
        os.kill(state.pid, 0)
    except FileNotFoundError:
        raise BuilderError("no server of this repository runs on this host", where=str(path), remedy=remedy) from None
    except ProcessLookupError:
        raise BuilderError(
            f"the server that wrote it, process {state.pid}, has ended", where=str(path), remedy=remedy
        ) from None
    except PermissionError as error:
        raise BuilderError(
            "is of a server that another user runs", where=str(path), remedy="Ask as that user."
        ) from error
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise BuilderError(f"cannot be read: {error}", where=str(path), remedy=remedy) from error
    return state


def remove_state(path: Path, pid: int) -> None:
    """Remove the file if it is still of the server with that process id."""
    try:
        if json.loads(path.read_text())["pid"] == pid:
            path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        pass  # gone, or another's


@contextlib.contextmanager
def one_server(repository: Path) -> Iterator[None]:
    """One server of a repository on this host at a time: a second would write over the log and the state of the first.

    The lock ends with the process. Raises BuilderError if another has it.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # no folder, of which the server tells, or a file system without locks
            descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BuilderError(
                    f"is served already{_reached(repository)}",
                    where=str(repository),
                    remedy="Stop that server, or serve a copy of the repository.",
                ) from error
        yield


def _reached(repository: Path) -> str:
    """Where the server of a repository is reached, as far as it has told yet."""
    try:
        state = read_state(repository)
    except BuilderError:
        return ""
    return f", on {state.url or state.http}"


def admin_headers(key: str) -> dict[str, str]:
    """The gRPC header of a call that the key allows."""
    return {f"triton-grpc-protocol-{KEY_NAME}": key}


def new_key() -> str:
    return secrets.token_urlsafe(32)


def read_key(file: Path | None) -> str | None:
    """The key in a file, else in the environment (SILVERTRITON_ADMIN_KEY), else None.

    Raises BuilderError for one that cannot be. It is no option itself, as every user of a host sees the command lines
    of all processes.
    """
    if file is not None:
        try:
            return checked_key(file.read_text().strip(), str(file))
        except (OSError, ValueError) as error:
            raise BuilderError(f"cannot be read: {error}", where=str(file)) from error
    text = os.environ.get(KEY_VARIABLE)
    return checked_key(text, KEY_VARIABLE) if text else None


def checked_key(key: str, where: str) -> str:
    """The key itself. Raises BuilderError, which does not show it, if it cannot be one."""
    if not _KEY.fullmatch(key):
        raise BuilderError(
            f"got {len(key)} characters, expected 16 to 256 letters, digits, '-', '_', '.' and '~'",
            where=f"admin key of {where}",
            remedy="Make one with: openssl rand -hex 32",
        )
    return key
