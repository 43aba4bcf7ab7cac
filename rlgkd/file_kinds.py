"""Refuses what is no regular file before it is opened: opening a pipe waits, and reading a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_file(path: str | Path) -> None:
    """Raise OSError, as opening it would, if `path` is missing, or is no regular file nor a link to one.

    Examples:
        >>> check_file("/dev/zero")
        Traceback (most recent call last):
        ...
        OSError: [Errno 22] it is a device, not a file: '/dev/zero'
    """
    if kind := other_kind(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def other_kind(path: str | Path) -> str:
    """Return what there is at `path`, if it is no regular file nor a link to one; empty if it is.

    Raises: OSError if nothing is there.
    """
    mode = os.stat(path).st_mode
    return next((kind for matches, kind in KINDS if matches(mode)), "")
