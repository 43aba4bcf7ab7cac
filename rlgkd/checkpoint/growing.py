"""The one writer of every file that grows: whole records or none, and one line where the disk does not take them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rlgkd.checkpoint.files import writing
from rlgkd.file_kinds import check_file

REMEDY = "free space, and go on from there; what was written before is whole"


class GrowingFile:
    r"""Appends to a file without a buffer: what `write` has returned from is in the operating system's hands.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run, GrowingFile(Path(run) / "rollouts.jsonl") as file:
        ...     file.write("{}\n")
        ...     file.size
        3
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises: CheckpointError if it cannot be opened, or is a pipe, a device or a folder.
        """
        self.path = Path(path)
        with writing(self.path, REMEDY):
            if self.path.exists():
                check_file(self.path)
            self._file = self.path.open("ab", buffering=0)

    def write(self, record: str | bytes) -> None:
        """Append a record.

        Raises: CheckpointError if it could not be written; the file then ends with the record before it.
        """
        left = memoryview(record.encode() if isinstance(record, str) else record)
        before = self.size
        with writing(self.path, REMEDY):
            try:
                while left:
                    left = left[self._file.write(left) :]
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), before)
                raise

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
