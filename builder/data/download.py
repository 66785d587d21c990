"""Files of public datasets from their publisher, checked before they are used."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request

from builder.errors import DownloadError

TIMEOUT_S = 30.0  # per network operation, not for the whole file


def download(url: str) -> bytes:
    """The content at `url`. Raises DownloadError: unreachable, refused, cut short."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content: bytes = response.read()
            return content
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
        raise DownloadError(
            f"cannot be downloaded: {error}",
            where=url,
            remedy="Fetch it yourself and give the folder it lies in with --data.",
        ) from error


def check_md5(content: bytes, expected: str, where: str) -> None:
    """Raises DownloadError if the file is another one than its publisher's checksum says."""
    _compare(hashlib.md5(content, usedforsecurity=False).hexdigest(), expected, where)


def check_git_blob(content: bytes, expected: str, where: str) -> None:
    """The same by the object id git gives the file: SHA-1 of "blob <length>\\0" and the content."""
    header = f"blob {len(content)}\0".encode()
    _compare(hashlib.sha1(header + content, usedforsecurity=False).hexdigest(), expected, where)


def _compare(got: str, expected: str, where: str) -> None:
    if got != expected:
        raise DownloadError(f"checksum {got}, expected {expected}", where=where, remedy="Try again later.")
