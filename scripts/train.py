"""Trains from settings into a run's folder, and continues it exactly: `rlgkd train`.

The folder holds config.yaml (resolved; runs again as it is), progress.csv, TensorBoard events, rollouts.jsonl,
checkpoints/step-N, model/ (a Hugging Face folder), summary.json and report.html. A checkpoint remembers how long the
two growing files were, so a continued run cuts them to that length and ends with the files of one never stopped.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import gymnasium as gym
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from rlgkd import agents, checkpoint
from rlgkd.agents.base import TextAlgorithm
from rlgkd.envs.sb3 import TextVecEnv, make_sb3_vec_env
from rlgkd.errors import CheckpointError, RlgkdError, SettingError
from rlgkd.evaluation import Evaluation, Interval, evaluate
from rlgkd.scripts import report
from rlgkd.scripts.settings import RunSettings, dump, nearest, read
from rlgkd.types import Trajectory

EXAMPLES = 20
CONFIG, PROGRESS, ROLLOUTS, SUMMARY = "config.yaml", "progress.csv", "rollouts.jsonl", "summary.json"


def start(settings: RunSettings, out: Path, *, quiet: bool = False) -> Path:
    """Train into a new folder; returns the report's path.

    Raises: CheckpointError if the folder is in use; SettingError, ModelError and DataError before anything is written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("out", str(out), "it is in use; give another --out, or --resume it")
    agent = build_agent(settings)
    made = next(folder for folder in (*reversed(out.parents), out) if not folder.exists() or folder == out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        checkpoint.atomic_write(out / CONFIG, dump(settings))
        try:
            return _run(settings, agent, out, quiet)
        except RlgkdError:
            if not (out / PROGRESS).exists():  # refused before any training: leave nothing behind
                shutil.rmtree(made)
            raise


def resume(out: Path, *, quiet: bool = False) -> Path:
    """Continue a run's folder from its newest whole checkpoint, or from its beginning if there is none yet.

    Raises: CheckpointError if the folder holds no run or another process trains in it.
    """
    if not (out / CONFIG).is_file():
        raise CheckpointError("resume", str(out), "give the folder of a run; it must hold config.yaml")
    settings = read(out / CONFIG)
    with _locked(out):
        agent = build_agent(settings)
        newest = checkpoint.latest(out / "checkpoints")
        sizes = {PROGRESS: 0, ROLLOUTS: 0}
        if newest is not None:
            state = checkpoint.load(newest, model=agent.student.module, optimizer=agent.policy.optimizer)
            agent.counters, sizes = state["counters"], state["sizes"]
        for name, size in sizes.items():
            _cut(out / name, size)
        return _run(settings, agent, out, quiet)


def build_agent(settings: RunSettings) -> TextAlgorithm:
    """The agent on its environment, as the settings say."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    env = make_env(settings.env, seed=settings.seed, **settings.env_settings)
    algorithm: type[TextAlgorithm] = getattr(agents, settings.agent)
    return algorithm(env=env, **settings.agent_settings())


def make_env(env: str, *, seed: int, **env_settings: Any) -> TextVecEnv:
    """The registered environment for an agent.

    Raises: SettingError for an unknown id (the nearest is named) or a setting that the environment does not take.
    """
    try:
        return make_sb3_vec_env(env, seed=seed, **env_settings)
    except gym.error.Error as error:
        known = [name for name in gym.registry if name.startswith("rlgkd/")]
        raise SettingError("env", env, nearest(env, known)) from error
    except TypeError as error:
        raise SettingError("env_settings", env_settings, str(error)) from error


def _run(settings: RunSettings, agent: TextAlgorithm, out: Path, quiet: bool) -> Path:
    """Evaluate, train, evaluate, and write what is left: model, summary, report."""
    console = Console(stderr=True)
    console.print(f"{settings.name}: {agent.task.name}, {settings.tokens:,} tokens, into {out}")
    began = time.perf_counter()
    before = _evaluate(settings, agent, trained=False)
    taught = None
    if agent.teacher is not None:
        taught = evaluate(agent.teacher, agent.teacher, agent.task, **_evaluation(settings))
    console.print(
        f"evaluated {settings.eval_prompts} {settings.eval_split} prompts in {time.perf_counter() - began:.0f} s"
    )

    with (out / PROGRESS).open("a") as progress, (out / ROLLOUTS).open("a") as rollouts:
        events = TensorBoardOutputFormat(str(out / "tensorboard"))
        agent.set_logger(Logger(str(out), [_ProgressCsv(progress), events]))
        remaining = settings.tokens - agent.num_timesteps
        if remaining > 0:
            recorder = _Recorder(settings, out, progress, rollouts, quiet=quiet, console=console)
            agent.learn(remaining, callback=recorder, reset_num_timesteps=False)
        events.close()

    after = _evaluate(settings, agent, trained=True)
    summary = summarise(settings, agent, before, after, taught)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    _save_model(agent, out / "model")
    checkpoint.atomic_write(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    page = report.write_report(out)
    console.print(report.table(summary))
    console.print(f"report: {page}")
    return page


def _evaluate(settings: RunSettings, agent: TextAlgorithm, *, trained: bool) -> Evaluation:
    """The student now, or (a continued run needs it) as it was before training."""
    student = agent.student
    if not trained and agent.num_timesteps:
        fresh = build_agent(settings)
        student = fresh.student
    return evaluate(student, agent.teacher, agent.task, **_evaluation(settings))


def _evaluation(settings: RunSettings) -> dict[str, Any]:
    return {"split": settings.eval_split, "prompts": settings.eval_prompts, "seed": settings.seed}


def summarise(
    settings: RunSettings, agent: TextAlgorithm, before: Evaluation, after: Evaluation, taught: Evaluation | None
) -> dict[str, Any]:
    """What summary.json holds: scores with intervals, paired changes, and texts side by side."""

    def plain(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
        return {name: asdict(score) for name, score in scores.items()}

    def text(evaluation: Evaluation, row: int) -> dict[str, Any]:
        written = evaluation.trajectories[row]
        return {
            "text": written.text, "reward": written.score.reward, "parts": dict(written.score.parts),
            "quality": evaluation.qualities[row], "stop": str(written.stop),
        }  # fmt: skip

    return {
        "name": settings.name, "env": settings.env, "agent": settings.agent,
        "student": settings.student, "teacher": settings.teacher,
        "alpha": agent.objective.alpha, "divergence": settings.divergence,
        "updates": agent.counters["updates"], "tokens": agent.num_timesteps,
        "prompts": len(before.trajectories), "split": settings.eval_split,
        "before": plain(before.scores()), "after": plain(after.scores()),
        "teacher_scores": plain(taught.scores()) if taught else {},
        "change": plain(after.change_from(before)),
        "examples": [
            {
                "key": item.key, "prompt": item.prompt, "reference": item.reference,
                "before": text(before, row), "after": text(after, row),
                **({"teacher": text(taught, row)} if taught else {}),
            }
            for row, item in enumerate(t.item for t in after.trajectories[:EXAMPLES])
        ],
    }  # fmt: skip


class _ProgressCsv(KVWriter):
    """SB3's csv, but appended to and never rewritten: the header is the first row's keys."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        file.seek(0, 2)
        self.keys: list[str] = []
        if file.tell():
            with open(file.name) as written:
                self.keys = written.readline().rstrip("\n").split(",")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        row = {name: value for name, value in key_values.items() if "csv" not in (key_excluded[name] or ())}
        if not self.keys:
            self.keys = sorted(row)
            self.file.write(",".join(self.keys) + "\n")
        self.file.write(",".join(str(row.get(name, "")) for name in self.keys) + "\n")
        self.file.flush()

    def close(self) -> None:
        """The file belongs to the run."""


class _Recorder(BaseCallback):
    """Writes checkpoints and rollouts, and shows how it goes."""

    def __init__(
        self, settings: RunSettings, out: Path, progress: TextIO, rollouts: TextIO, *, quiet: bool, console: Console
    ) -> None:
        super().__init__()
        self.settings, self.out, self.quiet, self.console = settings, out, quiet, console
        self.files = {PROGRESS: progress, ROLLOUTS: rollouts}
        self.model: TextAlgorithm
        self._saved = -1
        self._bar = Progress(
            BarColumn(bar_width=20), TextColumn("{task.description}"), TimeRemainingColumn(), console=console,
            disable=quiet,
        )  # fmt: skip
        self._row = self._bar.add_task("sampling", total=settings.tokens)

    def _on_training_start(self) -> None:
        self._saved = self.model.counters["updates"]
        self._bar.start()

    def _on_step(self) -> bool:
        self._bar.update(self._row, completed=self.model.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        """Between two updates everything is at rest: this is where a run can be continued from."""
        updates = self.model.counters["updates"]
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
        self._checkpoint(self.model.counters["updates"])

    def _record(self, t: Trajectory) -> dict[str, Any]:
        return {
            "step": self.model.counters["updates"], "key": t.item.key, "sample": t.sample, "source": str(t.source),
            "prompt": t.item.prompt, "completion": t.text, "reward": t.score.reward, "parts": dict(t.score.parts),
            "length": t.length, "logp": float(t.logp_T.sum()), "stop": str(t.stop),
        }  # fmt: skip

    def _show(self, updates: int) -> None:
        shown = self.model.latest
        line = (
            f"update {updates}  reward {shown.get('rollout/ep_rew_mean', float('nan')):.3f}"
            f"  divergence {shown.get('train/divergence', float('nan')):.3f} nats"
            f"  length {shown.get('rollout/ep_len_mean', 0):.1f}"
            f"  {shown.get('time/tokens_per_second', 0):.0f} tokens/s"
        )
        self._bar.update(self._row, description=line)
        if self.quiet and updates % 10 == 0:
            self.console.print(line, highlight=False)

    def _checkpoint(self, updates: int) -> None:
        sizes = {name: file.tell() for name, file in self.files.items()}
        folder = self.out / "checkpoints"
        folder.mkdir(exist_ok=True)
        checkpoint.save(
            folder / f"step-{updates}", model=self.model.student.module, optimizer=self.model.policy.optimizer,
            state={"counters": self.model.counters, "sizes": sizes, "settings": self.settings.model_dump()},
        )  # fmt: skip
        checkpoint.prune(folder)
        self._saved = updates


def _save_model(agent: TextAlgorithm, folder: Path) -> None:
    """The model's folder, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        agent.save(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            "model", str(folder), f"it could not be written ({error}); free space, then --resume"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _cut(file: Path, size: int) -> None:
    """Cut a file that grew beyond the checkpoint; one that is shorter was damaged."""
    have = file.stat().st_size if file.exists() else 0
    if have < size:
        raise CheckpointError("resume", str(file), f"it has {have} bytes but the checkpoint knows {size}; start anew")
    if have:
        with file.open("r+") as opened:
            opened.truncate(size)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError("out", str(out), "another process trains in it; wait for it or stop it") from error
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """Same as `rlgkd train`."""
    from rlgkd.scripts.cli import run

    run("train", arguments)


if __name__ == "__main__":
    main()
