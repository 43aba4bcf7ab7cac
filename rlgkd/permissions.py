"""Permissions of files that a library creates for its user alone, whatever the umask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def follow_umask(files: Iterable[Path]) -> None:
    """Give files that safetensors wrote, as 0600, the permissions of any other new file in their folder."""
    for file in list(files):
        # A new file shows the umask, which cannot be read without setting it for all threads.
        ordinary = file.with_name(f".{file.name}.new")
        ordinary.touch()
        try:
            file.chmod(ordinary.stat().st_mode & 0o777)
        finally:
            ordinary.unlink()
