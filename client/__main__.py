"""`python -m client query`: ask a server from the terminal, with nothing installed but the client."""

from __future__ import annotations

import os
import sys

from client._query import query
from client.errors import SilverTritonError

USAGE = "usage: python -m client query [--help] ..."


def main(arguments: list[str]) -> int:
    """The exit code: 0 done, 1 it cannot be done (the message says why), 2 wrong usage, 130 interrupted."""
    if not arguments or arguments[0] not in ("query", "-h", "--help"):
        print(USAGE, file=sys.stderr)
        return 2
    if arguments[0] != "query":
        print(USAGE)
        return 0
    try:
        query(arguments[1:], program="python -m client query")
        sys.stdout.flush()
    except SilverTritonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit
        if not isinstance(error, BrokenPipeError):  # whoever read the output, such as head, has enough
            print(f"error: the answer cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
