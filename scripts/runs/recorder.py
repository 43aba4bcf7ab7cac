"""The files that a run writes while it trains, its checkpoints, and its live line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.progress_line import cut_to_width, live_line
from rlgkd.secret_masks import masked
from rlgkd.types import Trajectory

PROGRESS, TIMES, ROLLOUTS, CHECKPOINTS = "progress.csv", "times.csv", "rollouts.jsonl", "checkpoints"
GROWING = (PROGRESS, TIMES, ROLLOUTS)
"""Files that are appended to; a checkpoint stores their sizes, and resuming cuts them to these."""
SLOW_REWARD_SECONDS = 0.1
"""The live line shows the time that an update's reward takes if it is longer than this."""


class ProgressCsv(KVWriter):
    """SB3's CSV writer, but append-only: the first row's keys are the header, and later keys are dropped.

    SB3's own rewrites the whole file when a new key appears; a resumed run could then not cut it to a known size.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        file.seek(0, 2)
        self.keys: list[str] = []
        if file.tell():
            with open(file.name) as written:
                self.keys = written.readline().rstrip("\n").split(",")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row."""
        row = {name: value for name, value in key_values.items() if self.wants(name, key_excluded[name] or ())}
        if not self.keys:
            self.keys = sorted(row)
            self.file.write(",".join(self.keys) + "\n")
        self.file.write(",".join(str(row.get(name, "")) for name in self.keys) + "\n")
        self.file.flush()

    def wants(self, name: str, excluded: tuple[str, ...]) -> bool:
        """Return whether a value belongs into this file."""
        return "csv" not in excluded

    def close(self) -> None:
        """Leave the file open: the run owns it."""


class TimesCsv(ProgressCsv):
    """The seconds of each update, in a file of their own: they differ from run to run, progress.csv does not."""

    def wants(self, name: str, excluded: tuple[str, ...]) -> bool:
        """Keep the names that begin with time/."""
        return name.startswith("time/")


class Recorder(BaseCallback):
    """Writes checkpoints and rollouts, and shows the progress."""

    def __init__(
        self, settings: RunConfig, out: Path, files: Mapping[str, TextIO], *, quiet: bool, console: Console
    ) -> None:
        super().__init__()
        self.settings = settings
        self.out = out
        self.files = files
        self.quiet = quiet
        self.console = console
        self.model: TextAlgorithm
        self._saved_update = -1
        """The update of the newest checkpoint, which a resumed run must not write again."""
        self._line = live_line(console, quiet=quiet)
        self._task = self._line.add_task("sampling", total=settings.tokens)

    def _on_training_start(self) -> None:
        self._saved_update = self.model.state.updates
        self._line.start()

    def _on_step(self) -> bool:
        self._line.update(self._task, completed=self.model.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        # Between two updates no rollout and no gradient is pending: the only moment a run can be continued from.
        updates = self.model.state.updates
        if updates > self._saved_update:
            self._show(updates)
            if updates % self.settings.checkpoint_every == 0:
                self._checkpoint(updates)

    def _on_rollout_end(self) -> None:
        for trajectory in self.model.trajectories:
            self.files[ROLLOUTS].write(json.dumps(self._record(trajectory)) + "\n")
        self.files[ROLLOUTS].flush()

    def _on_training_end(self) -> None:
        self._line.stop()
        self._checkpoint(self.model.state.updates)

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
        pieces = [
            f"reward {metrics.get('rollout/ep_rew_mean', math.nan):.3f}",
            f"divergence {metrics.get('train/divergence', math.nan):.3f}",
            f"update {updates}",
            f"{metrics.get('time/tokens_per_second', 0):.0f} tokens/s",
            f"length {metrics.get('rollout/ep_len_mean', 0):.1f}",
        ]
        reward_seconds = metrics.get("time/reward", 0.0)
        if reward_seconds > SLOW_REWARD_SECONDS:
            pieces.append(f"scoring {reward_seconds:.1f} s")
        self._line.update(self._task, description=cut_to_width(pieces, self.console))
        if self.quiet and updates % 10 == 0:
            self.console.print("  ".join(pieces), highlight=False, soft_wrap=True)

    def _checkpoint(self, updates: int) -> None:
        sizes = {name: file.tell() for name, file in self.files.items()}
        folder = self.out / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        checkpoint.save(
            folder / f"step-{updates}",
            model=self.model.modules,
            optimizer=self.model.policy.optimizer,
            state={"training": self.model.state.to_json(), "sizes": sizes, "settings": masked(self.settings.flat())},
        )
        checkpoint.prune(folder)
        self._saved_update = updates
