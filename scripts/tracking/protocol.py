"""What a tracker of experiments is: five calls, in the order start, numbers / texts / files in any order, end.

Values are plain: texts, numbers, lists, mappings. What a tracker raises is counted and reported, and the next call is
made; see `rlgkd.scripts.tracking.process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FOLDER = "trackers"
"""In a run's folder: the id, and what each tracker's library has printed."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that a tracker begins or goes on with."""

    id: str
    """Eight hexadecimal digits that the run keeps for as long as its folder is there."""
    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]
    """Every setting under its flat name, secrets masked."""
    resumed: bool
    """Whether an earlier process of this run has started a tracker with this id; it may not have come that far."""


class Tracker(Protocol):
    """Receives the numbers, texts and files of one run."""

    def start(self, run: TrackedRun) -> str:
        """Begin the tracked run, or go on with the one of this id; return where it can be seen, or an empty text."""

    def numbers(self, values: Mapping[str, float], tokens: int) -> None:
        """Take finite numbers by name, such as `train/divergence`, after this many tokens of training.

        After a resumption from a checkpoint the tokens go back to where it was written.
        """

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Take sampled texts: rows with the same names in each, such as prompt, completion and reward."""

    def files(self, paths: Sequence[Path]) -> None:
        """Take files of the run's folder; they may change later."""

    def end(self, *, whole: bool) -> None:
        """End the tracked run; `whole` is False if it was stopped or has failed, and may be resumed."""
