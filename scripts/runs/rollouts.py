"""Reads rollouts.jsonl, every text that a run has sampled; a line that was damaged is left out, and can be named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

COLUMNS: Final = ("step", "key", "source", "completion", "reward", "stop")
"""What each record has, as far as anything reads it."""


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that can be read, in their order."""
    yield from (record for record in _lines(path) if record is not None)


def damaged_lines(path: Path) -> list[int]:
    r"""Return the numbers of the lines that hold no record; a file that is not there has none.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = (Path(run) / "rollouts.jsonl").write_text("oops\n")
        ...     damaged_lines(Path(run) / "rollouts.jsonl")
        [1]
    """
    return [number for number, record in enumerate(_lines(path), 1) if record is None] if path.exists() else []


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                yield None
                continue
            yield record if isinstance(record, dict) and all(name in record for name in COLUMNS) else None
