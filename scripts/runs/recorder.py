"""What a run writes while it trains: progress.csv, times.csv, rollouts.jsonl, checkpoints, a live line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.progress_line import bar, fitting
from rlgkd.types import Trajectory

PROGRESS, TIMES, ROLLOUTS, CHECKPOINTS = "progress.csv", "times.csv", "rollouts.jsonl", "checkpoints"
GROWING = (PROGRESS, TIMES, ROLLOUTS)


class ProgressCsv(KVWriter):
    """SB3's csv, but appended to and never rewritten: the header is the first row's keys."""

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
        """Whether a value belongs into this file."""
        return "csv" not in excluded

    def close(self) -> None:
        """The file belongs to the run."""


class TimesCsv(ProgressCsv):
    """What differs from one run to the next, beside the tokens: seconds of each update."""

    def wants(self, name: str, excluded: tuple[str, ...]) -> bool:
        """The names that begin with time/."""
        return name.startswith("time/")


class Recorder(BaseCallback):
    """Writes checkpoints and rollouts, and shows how it goes."""

    def __init__(
        self, settings: RunConfig, out: Path, files: Mapping[str, TextIO], *, quiet: bool, console: Console
    ) -> None:
        super().__init__()
        self.settings, self.out, self.files, self.quiet, self.console = settings, out, files, quiet, console
        self.model: TextAlgorithm
        self._saved = -1
        self._bar = bar(console, quiet=quiet)
        self._row = self._bar.add_task("sampling", total=settings.tokens)

    def _on_training_start(self) -> None:
        self._saved = self.model.state.updates
        self._bar.start()

    def _on_step(self) -> bool:
        self._bar.update(self._row, completed=self.model.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        """Between two updates everything is at rest: this is where a run can be continued from."""
        updates = self.model.state.updates
        if updates > self._saved:
            self._show(updates)
            if updates % self.settings.checkpoint_every == 0:
                self._checkpoint(updates)

    def _on_rollout_end(self) -> None:
        for trajectory in self.model.trajectories:
            self.files[ROLLOUTS].write(json.dumps(self._record(trajectory)) + "\n")
        self.files[ROLLOUTS].flush()

    def _on_training_end(self) -> None:
        self._bar.stop()
        self._checkpoint(self.model.state.updates)

    def _record(self, t: Trajectory) -> dict[str, Any]:
        return {
            "step": self.model.state.updates, "key": t.item.key, "sample": t.sample, "source": str(t.source),
            "prompt": t.item.prompt, "completion": t.text,
            **({"turns": t.turns} if t.turns else {}), "reward": t.score.reward, "parts": dict(t.score.parts),
            **({"failure": t.score.failure} if t.score.failure else {}),
            "length": t.length, "logp": float(t.logp_T.sum()),
            "entropy": float(t.entropy_T.sum()) / t.length, "stop": str(t.stop),
        }  # fmt: skip

    def _show(self, updates: int) -> None:
        shown = self.model.last_metrics
        told = [
            f"reward {shown.get('rollout/ep_rew_mean', float('nan')):.3f}",
            f"divergence {shown.get('train/divergence', float('nan')):.3f}",
            f"update {updates}",
            f"{shown.get('time/tokens_per_second', 0):.0f} tokens/s",
            f"length {shown.get('rollout/ep_len_mean', 0):.1f}",
        ]
        if (seconds := shown.get("time/reward", 0.0)) > 0.1:
            told.append(f"scoring {seconds:.1f} s")
        self._bar.update(self._row, description=fitting(told, self.console))
        if self.quiet and updates % 10 == 0:
            self.console.print("  ".join(told), highlight=False, soft_wrap=True)

    def _checkpoint(self, updates: int) -> None:
        sizes = {name: file.tell() for name, file in self.files.items()}
        folder = self.out / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        checkpoint.save(
            folder / f"step-{updates}", model=self.model.modules, optimizer=self.model.policy.optimizer,
            state={"training": self.model.state.to_json(), "sizes": sizes, "settings": self.settings.flat()},
        )  # fmt: skip
        checkpoint.prune(folder)
        self._saved = updates
