"""TensorBoard's events of a run: one scalar each, without SB3's writer, whose thread fails apart from the run."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint

_log = logging.getLogger(__name__)
_numbers = itertools.count()
"""Tells files apart that one process begins within a second, as TensorBoard's own writer does."""


class Events(KVWriter):
    """Appends a record for each update to an event file of its own; a resumed run begins another one."""

    def __init__(self, folder: Path, tokens: int = 0) -> None:
        """Begin the file; earlier files of the folder count up to so many tokens, from where the run goes on.

        Raises: CheckpointError if it cannot be written; ImportError without tensorboard.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        with checkpoint.writing(folder):
            folder.mkdir(exist_ok=True)
        goes_on = any(folder.glob("events.out.tfevents.*"))
        self._records = RecordWriter(checkpoint.GrowingFile(folder / name))
        self._write(file_version="brain.Event:2")
        if goes_on:  # readers drop what the files before it have from this step on
            self._write(step=tokens + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append the numbers among the values."""
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in sorted(key_values.items())
            if "tensorboard" not in (key_excluded[name] or ())
            and isinstance(value, int | float | np.integer | np.floating)
        ]
        self._write(step=step, summary=self._summary(value=values))

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Append texts as a table, shown on TensorBoard's page for texts."""
        if not rows:
            return
        lines = [rows[0].keys(), ["---"] * len(rows[0]), *(map(_cell, row.values()) for row in rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        value = self._summary.Value(
            tag="texts/text_summary",
            metadata={"plugin_data": {"plugin_name": "text"}},
            tensor={"dtype": "DT_STRING", "string_val": [table.encode()]},
        )
        self._write(step=tokens, summary=self._summary(value=[value]))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


def _cell(value: object) -> str:
    """A value in a table of Markdown, as code, so that a text is no markup."""
    text = str(value).replace("`", "'").replace("|", "\N{BROKEN BAR}")
    return f"`{' '.join(text.split())}`"


def events_if_installed(folder: Path, tokens: int = 0) -> list[Events]:
    """Return the events' writer (see `Events`), or none, with a word in the log, without tensorboard."""
    try:
        return [Events(folder, tokens)]
    except ImportError:
        _log.warning("no events for TensorBoard are written: pip install 'rlgkd[tensorboard]'")
        return []
