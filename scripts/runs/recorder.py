"""The files that a run writes while it trains, its checkpoints, and its live line."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.scripts._console import say
from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.progress_csv import read_table, write_rows, write_table
from rlgkd.scripts.runs.events import Events
from rlgkd.scripts.runs.folder import CHECKPOINTS, EVALUATIONS, GROWING, ROLLOUTS
from rlgkd.scripts.runs.progress_line import cut_to_width, live_line
from rlgkd.scripts.runs.stopping import StopRequest
from rlgkd.scripts.runs.tracked import text_row
from rlgkd.scripts.tracking.trackers import NO_TRACKERS, Trackers
from rlgkd.secret_masks import masked
from rlgkd.teachers import RoutedTeachers
from rlgkd.types import Trajectory

SLOW_REWARD_SECONDS = 0.1
"""The live line shows the time that an update's reward takes if it is longer than this."""


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


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as RFC 8259 has it, in which a number that is not finite is null.

    Examples:
        >>> strict_json({"reward": math.nan, "parts": (1.0, math.inf)})
        '{"reward": null, "parts": [1.0, null]}'
    """

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [known(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(value), indent=indent, allow_nan=False)


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


class BetweenUpdates(Protocol):
    """What moves between updates with the run that is recorded; `rlgkd.scripts.runs.course` has it."""

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""

    def saved(self) -> None:
        """Called after each checkpoint."""

    def shown(self) -> list[str]:
        """What the live line shows of it."""


class Recorder(BaseCallback):
    """Writes checkpoints and rollouts, and shows the progress."""

    def __init__(
        self,
        settings: RunConfig,
        out: Path,
        rollouts: checkpoint.GrowingFile,
        stop: StopRequest,
        history: Sequence[Change] = (),
        text_ids: Mapping[str, Any] | None = None,
        course: BetweenUpdates | None = None,
        *,
        trackers: Trackers = NO_TRACKERS,
        events: Sequence[Events] = (),
        quiet: bool,
        console: Console,
    ) -> None:
        super().__init__()
        self.trackers = trackers
        self.tables = (trackers.texts, *(writer.texts for writer in events))
        """Take rows of texts and the number of tokens."""
        self.history = history
        """Settings that changed since the run began."""
        self.text_ids = text_ids
        """What identifies the ids of its texts; see `rlgkd.scripts.runs.text_ids`."""
        self.course = course
        self.settings = settings
        self.out = out
        self.rollouts = rollouts
        self.stop = stop
        self._goes_on = True
        """False once an update's sampling was stopped, here or in another process: the update is not whole."""
        self._whole: dict[str, Any] = {}
        """Where the run stood before the update that is being sampled."""
        self.quiet = quiet
        self.console = console
        self.model: TextAlgorithm
        self._saved_at = time.monotonic()
        self._saved_update = -1
        """The update of the newest checkpoint, which a resumed run must not write again."""
        self._line = live_line(console, quiet=quiet)
        self._task = self._line.add_task("sampling", total=settings.tokens)

    def _on_training_start(self) -> None:
        self._saved_update = self.model.state.updates
        self._line.start()

    def _on_step(self) -> bool:
        self._line.update(self._task, completed=self.model.num_timesteps)
        return self.stop.number is None

    def _on_rollout_start(self) -> None:
        # Between two updates no rollout and no gradient is pending: the only moment a run can be continued from.
        updates = self.model.state.updates
        if updates > self._saved_update:
            self._show(updates)
            for line in self.trackers.news():
                say(self.console, line)
            if updates % self.settings.checkpoint_every == 0 or self._is_late():
                self._checkpoint(self._position())
        self._whole = self._position()

    def _is_late(self) -> bool:
        """Whether the newest checkpoint, or the beginning, is `checkpoint_minutes` ago."""
        minutes = self.settings.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def _on_rollout_end(self) -> None:
        self._goes_on = self.locals["going"]
        if not self._goes_on:
            return  # texts that were cut off, which no update learns from
        records = [self._record(trajectory) for trajectory in self.model.trajectories]
        for record in records:
            self.rollouts.write(strict_json(record) + "\n")
        if self.model.state.updates % self.settings.tracker_texts_every == 0:
            rows = [text_row(record) for record in records[: self.settings.tracker_texts]]
            for table in self.tables:
                table(rows, self.model.num_timesteps)

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        self._line.stop()

    def _on_training_end(self) -> None:
        self.close()
        self._checkpoint(self._position() if self._goes_on else self._whole)

    def _record(self, t: Trajectory) -> dict[str, Any]:
        """Return a trajectory's line of rollouts.jsonl."""
        record: dict[str, Any] = {
            "step": self.model.state.updates,
            "key": t.item.key,
            "sample": t.sample,
            "source": str(t.source),
            "prompt": t.item.prompt,
            "completion": t.text,
        }
        if isinstance(self.model.teacher, RoutedTeachers):
            record["teacher"] = self.model.teacher.name_of(t.item)
        if self.settings.algorithm.teacher.teacher_prompt is not None:
            record["teacher_prompt"] = self.model.teacher_prompt_of(t)
        if t.turns:
            record["turns"] = t.turns
        record["reward"] = t.score.reward
        record["parts"] = dict(t.score.parts)
        if t.score.failure:
            record["failure"] = t.score.failure
        return {
            **record,
            "length": t.length,
            "logp": float(t.logp_T.sum()),
            "entropy": float(t.entropy_T.sum()) / t.length,
            "stop": str(t.stop),
        }

    def _show(self, updates: int) -> None:
        metrics = self.model.last_metrics
        divergence = metrics.get("train/divergence", math.nan)  # none without a teacher
        pieces = [
            f"reward {metrics.get('rollout/ep_rew_mean', math.nan):.3f}",
            *([f"divergence {divergence:.3f}"] if math.isfinite(divergence) else []),
            f"update {updates}",
            f"{metrics.get('time/tokens_per_second', 0):.0f} tokens/s",
            f"length {metrics.get('rollout/ep_len_mean', 0):.1f}",
        ]
        if self.course is not None:
            pieces[1:1] = self.course.shown()
        reward_seconds = metrics.get("time/reward", 0.0)
        if reward_seconds > SLOW_REWARD_SECONDS:
            pieces.append(f"scoring {reward_seconds:.1f} s")
        self._line.update(self._task, description=cut_to_width(pieces, self.console))
        if self.quiet and updates % 10 == 0:
            say(self.console, "  ".join(pieces))

    def _position(self) -> dict[str, Any]:
        """Return where the run stands; weights and optimizer stay as they are while texts are sampled."""
        course = {} if self.course is None else self.course.to_json()
        return {"training": self.model.state.to_json(), "sizes": {ROLLOUTS: self.rollouts.size}, **course}

    def _checkpoint(self, position: dict[str, Any]) -> None:
        updates = position["training"]["updates"]
        # A checkpoint counts on these files: they are on the disk before it is, whenever the power goes.
        evaluations = [EVALUATIONS] if (self.out / EVALUATIONS).exists() else []
        for path in (*(self.out / name for name in (*GROWING, *evaluations)), self.out):
            checkpoint.sync(path)
        folder = self.out / CHECKPOINTS
        checkpoint.save(
            folder / f"step-{updates}",
            model=self.model.modules,
            optimizer=self.model.policy.optimizer,
            state={
                **position,
                "settings": masked(self.settings.flat()),
                "text_ids": self.text_ids,
                "changes": [asdict(change) for change in self.history],
            },
        )
        checkpoint.prune(folder)
        if self.course is not None:
            self.course.saved()
        self._saved_update, self._saved_at = updates, time.monotonic()
