"""The tables that a run appends to while it trains: progress.csv, times.csv, evaluations.csv."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.progress_csv import read_table, write_rows, write_table


class ProgressCsv(KVWriter):
    """Appends a row for each update; a column that comes later is empty in the rows before it.

    Unlike SB3's, it goes on with the file of a run that was stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        checkpoint.GrowingFile(path).close()
        self.names, _ = read_rows(path)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row."""
        row = {name: str(value) for name, value in key_values.items() if self.wants(name, key_excluded[name] or ())}
        if new := sorted(row.keys() - {*self.names}):
            _, rows = read_rows(self.path)
            self.names += new
            checkpoint.atomic_write(self.path, write_table(self.names, [[*old, *[""] * len(new)] for old in rows]))
        with checkpoint.GrowingFile(self.path) as file:
            file.write(write_rows([[row.get(name, "") for name in self.names]]))

    def wants(self, name: str, excluded: tuple[str, ...]) -> bool:
        """Return whether a value belongs into this file."""
        return "csv" not in excluded

    def close(self) -> None:
        """Nothing stays open between two rows."""


class TimesCsv(ProgressCsv):
    """The seconds of each update, in a file of their own: they differ from run to run, progress.csv does not."""

    def wants(self, name: str, excluded: tuple[str, ...]) -> bool:
        """Keep the names that begin with time/."""
        return name.startswith("time/")


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of progress.csv or times.csv, without a last row that was not written to its end."""
    text = path.read_bytes().decode(errors="replace")
    return read_table(text[: text.rfind("\n") + 1])


def number_of_rows(path: Path) -> int:
    """Return how many updates progress.csv or times.csv has; a file that is missing or not CSV has none."""
    try:
        return len(read_rows(path)[1])
    except (FileNotFoundError, csv.Error):
        return 0


def tokens_of_row(path: Path, row: int) -> float:
    """Return the tokens that a row of progress.csv has, counted from 1; NaN if it has none."""
    names, rows = read_rows(path)
    return to_float(dict(zip(names, rows[row - 1], strict=True)).get("time/total_timesteps"))


def cut_rows(path: Path, rows: int) -> None:
    """Shorten progress.csv or times.csv to this number of rows, if it has more."""
    if not path.exists():
        return
    text = ""
    if rows:
        with suppress(csv.Error):  # damaged times: `number_of_rows` has seen that progress.csv is whole
            names, have = read_rows(path)
            text = write_table(names, have[:rows])
    if text.encode() != path.read_bytes():
        checkpoint.atomic_write(path, text)
