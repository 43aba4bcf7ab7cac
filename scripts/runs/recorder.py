"""What a run writes while it trains besides its tables: checkpoints and texts; and its live line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.ranks import ALONE
from rlgkd.scripts._console import say
from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.events import Events
from rlgkd.scripts.runs.folder import CHECKPOINTS, EVALUATIONS, GROWING, ROLLOUTS
from rlgkd.scripts.runs.progress_line import cut_to_width, live_line
from rlgkd.scripts.runs.speed import memory, spent
from rlgkd.scripts.runs.stopping import StopRequest
from rlgkd.scripts.runs.tracked import text_row
from rlgkd.scripts.tracking.trackers import NO_TRACKERS, Trackers
from rlgkd.secret_masks import masked
from rlgkd.sharding import is_sharded
from rlgkd.teachers import RoutedTeachers
from rlgkd.types import Trajectory


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


def save_checkpoint(folder: Path, model: TextAlgorithm, settings: RunConfig, state: Mapping[str, Any]) -> None:
    """Save what trains; if processes share it out, all of them call this, and the main one's folder and state count.

    Raises: as `rlgkd.checkpoint.save`.
    """
    checkpoint.save(
        folder,
        model=model.modules,
        optimizer=model.policy.optimizer,
        state=state,
        sharded=settings.checkpoint_format == "sharded",
        ranks=model.ranks if is_sharded(model.student.module) else ALONE,
    )


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
        self._shared = math.nan
        """The share of the teacher's top 20 tokens that are the student's too, where it was measured last."""
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
        updates, due = self.model.state.updates, False
        if updates > self._saved_update:
            self._show(updates)
            for line in self.trackers.news():
                say(self.console, line)
            due = updates % self.settings.checkpoint_every == 0 or self._is_late()
        if is_sharded(self.model.student.module):
            self.model.ranks.from_main(lambda: due)  # the others bring their shards
        if due:
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
        for name, value in memory(self.model.device).items():
            self.logger.record(name, value, exclude="csv")
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
        self._shared = metrics.get("agreement/top20_shared", self._shared)
        if math.isfinite(self._shared):
            pieces.append(f"top 20 shared {self._shared:.0%}")
        pieces += spent(metrics)
        self._line.update(self._task, description=cut_to_width(pieces, self.console))
        if self.quiet and updates % 10 == 0:
            say(self.console, "  ".join(pieces))

    def _position(self) -> dict[str, Any]:
        """Return where the run stands; weights and optimizer stay as they are while texts are sampled."""
        course = {} if self.course is None else self.course.to_json()
        return {
            "training": self.model.state.to_json(),
            "guards": self.model.watch.seen.to_json(),
            "sizes": {ROLLOUTS: self.rollouts.size},
            **course,
        }

    def _checkpoint(self, position: dict[str, Any]) -> None:
        updates = position["training"]["updates"]
        # A checkpoint counts on these files: they are on the disk before it is, whenever the power goes.
        evaluations = [EVALUATIONS] if (self.out / EVALUATIONS).exists() else []
        for path in (*(self.out / name for name in (*GROWING, *evaluations)), self.out):
            checkpoint.sync(path)
        folder = self.out / CHECKPOINTS
        state = {
            **position,
            "settings": masked(self.settings.flat()),
            "text_ids": self.text_ids,
            "changes": [asdict(change) for change in self.history],
        }
        save_checkpoint(folder / f"step-{updates}", self.model, self.settings, state)
        checkpoint.prune(folder)
        if self.course is not None:
            self.course.saved()
        self._saved_update, self._saved_at = updates, time.monotonic()
