"""Lines on the terminal: a text is never markup or an emoji of rich, and its control characters are shown, not sent."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from rlgkd.errors import shown


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it stands, on one line however long."""
    console.print(shown(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


class ShownFormatter(logging.Formatter):
    """Formats log records for a terminal: a reward's exception or a model's name may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text with its control characters as escapes."""
        return shown(super().format(record))


class LastingStream:
    """A text stream that goes on into nothing once it cannot be written.

    That nobody reads a line any more, or that the disk of a log is full, is no reason to end a training.
    """

    def __init__(self, stream: Any) -> None:
        """Take the stream, whose descriptor is led to nothing then."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or nothing."""
        try:
            self._stream.write(text)
        except OSError:
            print_nowhere(self._stream.fileno())
        return len(text)

    def close(self) -> None:
        """Stay open: a reward that closes standard output would end the run."""
        self.flush()

    def flush(self) -> None:
        """Flush what is written."""
        try:
            self._stream.flush()
        except OSError:
            print_nowhere(self._stream.fileno())


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let both standard streams last while the body runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if stream is None else LastingStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_nowhere(*descriptors: int) -> None:
    """Lead what is written to these descriptors from now on to nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
