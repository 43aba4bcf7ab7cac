"""Trains from settings into a run's folder, and continues it exactly: `rlgkd train`.

The folder holds config.yaml (resolved; runs again as it is), progress.csv, times.csv, TensorBoard events,
rollouts.jsonl, checkpoints/step-N, model/ (a Hugging Face folder), summary.json and report.html. A checkpoint knows
how long the growing files were, so a continued run cuts them to that length and ends with the files of one never
stopped (but for the seconds in times.csv).
"""

from __future__ import annotations

import copy
import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.type_aliases import MaybeCallback

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.envs.registry import takes_tokenizer, text_env_ids
from rlgkd.envs.sb3 import TextVecEnv, make_sb3_vec_env
from rlgkd.errors import CheckpointError, RlgkdError, SettingError
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.lm.loading import copy_sharing_frozen
from rlgkd.ops._registry import UnknownSettingError, unknown_remedy
from rlgkd.ranks import TIMEOUT_MINUTES, join
from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.config.run import RunConfig, dump, read
from rlgkd.scripts.report import html, terminal, view
from rlgkd.scripts.report.formatting import visible
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.runs.allocator import keep_freed_memory, keep_freed_memory_after_first
from rlgkd.scripts.runs.recorder import (
    CHECKPOINTS,
    CONFIG,
    PROGRESS,
    ROLLOUTS,
    SUMMARY,
    TIMES,
    ProgressCsv,
    Recorder,
    TimesCsv,
    strict_json,
)
from rlgkd.scripts.runs.rewind import check_own_file, rewind
from rlgkd.scripts.runs.stopping import StopRequest, stoppable
from rlgkd.secret_masks import masked
from rlgkd.statistics import Interval
from rlgkd.types import StopReason

EXAMPLES = 20


def agreed_settings(read_settings: Callable[[], RunConfig]) -> RunConfig:
    """The settings, which all processes of the job must have: what one of them refuses ends them all.

    Raises: what `read_settings` raises; SettingError for a setting in which another process differs.
    """
    try:
        settings: RunConfig | RlgkdError = read_settings()
    except RlgkdError as error:
        settings = error
    ranks = join(TIMEOUT_MINUTES if isinstance(settings, RlgkdError) else settings.process_timeout)

    def own() -> RunConfig:
        if isinstance(settings, RlgkdError):
            raise settings
        return settings

    agreed = ranks.together(own)
    ranks.check_same({name: repr(value) for name, value in masked(agreed.flat()).items()})
    return agreed


def start(settings: RunConfig, out: Path, *, quiet: bool = False) -> Path | None:
    """Train into a new folder; returns the report's path, in the main process of several.

    Raises: CheckpointError if the folder is in use; SettingError, ModelError and DataError before anything is written.
    """
    ranks = join(settings.process_timeout)
    out = ranks.from_main(lambda: _unused(out))
    agent = ranks.together(lambda: build_agent(settings))
    with ExitStack() as held:
        ranks.together(lambda: held.enter_context(_new_folder(settings, out)) if ranks.main else None)
        return _run(settings, agent, out, quiet)


def resume(out: Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Path | None:
    """Continue a run's folder from its newest checkpoint that fits, or from its beginning if there is none yet.

    Settings may have changed: by `key=value` overrides, which config.yaml then holds, or by an edit of that file; see
    rlgkd.scripts.config.changes. The number of processes may have changed too. Returns as `start` does.

    Raises: CheckpointError if the folder holds no run, its checkpoints are lost, or another process trains in it;
    SettingError for a change that needs a new run.
    """

    def read_settings() -> RunConfig:
        if not (out / CONFIG).is_file():
            raise CheckpointError("resume", str(out), "give the folder of a run; it must hold config.yaml")
        return read(out / CONFIG, overrides)

    settings = agreed_settings(read_settings)
    ranks = join()
    with ExitStack() as held:
        ranks.together(lambda: held.enter_context(locked(out)) if ranks.main else None)
        return _run(settings, ranks.together(lambda: build_agent(settings)), out, quiet)


def _unused(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("out", str(out), "it is in use; give another --out, or --resume it")
    return out


@contextmanager
def _new_folder(settings: RunConfig, out: Path) -> Iterator[None]:
    """Hold a folder that has the run's config.yaml; one in which no training began is removed again after an error."""
    made = [folder for folder in out.parents if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        checkpoint.atomic_write(out / CONFIG, dump(settings))
        try:
            yield
        except RlgkdError:
            if not (out / PROGRESS).exists():  # refused before any training: leave nothing
                shutil.rmtree(out)
                for parent in made:
                    with suppress(OSError):  # another run has settled in it
                        parent.rmdir()
            raise


def build_agent(settings: RunConfig) -> TextAlgorithm:
    """The agent on its environment, as the settings say."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    env = make_env(settings.env, settings.env_settings, student=settings.student, seed=settings.seed)
    return settings.algorithm_class(env=env, **settings.agent_arguments())


def make_env(env: str, env_settings: Mapping[str, Any], *, student: str, seed: int) -> TextVecEnv:
    """The registered environment for an agent, with the student's tokenizer where the settings name no other.

    Raises: SettingError for an unknown id (the nearest is named) or a setting that the environment does not take.
    """
    try:
        own = {"tokenizer": student} if env_settings.get("tokenizer") is None and takes_tokenizer(env) else {}
        return make_sb3_vec_env(env, seed=seed, **{**env_settings, **own})
    except gym.error.Error as error:
        raise SettingError("env", env, unknown_remedy(env, text_env_ids())) from error
    except UnknownSettingError as error:
        raise SettingError(f"env_settings.{error.field}", error.value, error.remedy) from error
    except TypeError as error:
        raise SettingError("env_settings", env_settings, str(error)) from error


def _run(settings: RunConfig, agent: TextAlgorithm, out: Path, quiet: bool) -> Path | None:
    """Evaluate, train from where the folder's checkpoints have come, evaluate, write model, summary and report.

    Ctrl-C and SIGTERM exit, in training with a checkpoint of the last whole update; see `stoppable`.
    """
    console = Console(stderr=True, quiet=not agent.ranks.main)
    with stoppable(out, console) as stop:
        return _evaluated_run(settings, agent, out, quiet, console, stop)


def _evaluated_run(
    settings: RunConfig, agent: TextAlgorithm, out: Path, quiet: bool, console: Console, stop: StopRequest
) -> Path | None:
    ranks = agent.ranks
    processes = "1 process" if ranks.size == 1 else f"{ranks.size} processes"
    console.print(f"{settings.name}: {agent.task.name}, {settings.tokens:,} tokens, {processes}, into {out}")
    began = time.perf_counter()
    scored: dict[str, Any] = {
        "split": settings.eval_split,
        "prompts": settings.eval_prompts,
        "seed": settings.eval_seed,
        "ranks": ranks,
    }
    # Everything is measured against the teacher of the beginning, although training may move it.
    student = copy_sharing_frozen(agent.student) if (out / CHECKPOINTS).exists() else agent.student
    teacher = copy.deepcopy(agent.teacher) if agent.following_teacher is not None else agent.teacher
    history = rewind(settings, agent, out, console)
    if ranks.main and settings != read(out / CONFIG):  # the command line changed some, and the run can go on with them
        checkpoint.atomic_write(out / CONFIG, dump(settings))
    before = evaluate(student, teacher, agent.task, **scored)
    taught = evaluate(teacher, teacher, agent.task, **scored) if teacher else None
    console.print(
        f"evaluated {settings.eval_prompts} {settings.eval_split} prompts in {time.perf_counter() - began:.0f} s"
    )
    fit(settings, agent, out, stop, history, quiet=quiet, console=console)
    after = evaluate(agent.student, teacher, agent.task, **scored)
    if not ranks.main:
        return None
    summary = summarise(settings, agent, before, after, taught)
    summary["rewards"] = rewards_of(out, agent)
    if history:
        summary["changes"] = [asdict(change) for change in history]
    summary["seconds"] = round(time.perf_counter() - began, 1)
    checkpoint.atomic_write(out / SUMMARY, strict_json(summary, indent=1) + "\n")
    page = html.write_report(out)
    console.print(terminal.score_table(summary))
    for remark in view.remarks(summary):
        console.print(visible(remark), style="yellow", highlight=False, markup=False)
    return page


def fit(
    settings: RunConfig,
    agent: TextAlgorithm,
    out: Path,
    stop: StopRequest,
    history: Sequence[Change] = (),
    *,
    quiet: bool,
    console: Console,
) -> None:
    """Train from where `rewind` has brought the agent to the last token, and write its model.

    Checkpoints keep `history`, which `rewind` has returned.

    Raises: KeyboardInterrupt after a checkpoint of the last whole update, if a signal asked to stop.
    """

    def goes_on(*_: object) -> bool:
        return stop.number is None

    remaining = settings.tokens - agent.num_timesteps
    with ExitStack() as files:
        callback: MaybeCallback = goes_on
        agent.set_logger(Logger(None, []))
        if agent.ranks.main:
            (out / CHECKPOINTS).mkdir(exist_ok=True)  # before the files that grow: if it is missing, it was deleted
            events = files.enter_context(closing(TensorBoardOutputFormat(str(out / "tensorboard"))))
            rollouts = files.enter_context((out / ROLLOUTS).open("a"))
            agent.set_logger(Logger(str(out), [ProgressCsv(out / PROGRESS), TimesCsv(out / TIMES), events]))
            callback = Recorder(settings, out, rollouts, stop, history, quiet=quiet, console=console)
        if remaining > 0:
            keep_freed_memory_after_first(agent.policy.optimizer)
            with stop.at_whole_update():
                agent.learn(remaining, callback=callback, reset_num_timesteps=False)
                stop.heed(agent.ranks.gather(lambda: stop.number))
    if agent.ranks.main:
        _save_model(agent, out / "model")


def summarise(
    settings: RunConfig, agent: TextAlgorithm, before: Evaluation, after: Evaluation, taught: Evaluation | None
) -> dict[str, Any]:
    """What summary.json holds: scores with intervals, paired changes, and texts side by side."""

    def plain(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
        return {name: asdict(score) for name, score in scores.items()}

    def text(evaluation: Evaluation, row: int) -> dict[str, Any]:
        written = evaluation.trajectories[row]
        return {
            "text": written.transcript, "reward": written.score.reward, "parts": dict(written.score.parts),
            "quality": evaluation.qualities[row], "stop": str(written.stop),
        }  # fmt: skip

    return {
        "name": settings.name, "env": settings.env, "agent": settings.agent,
        "student": settings.student, "teacher": settings.teacher,
        "alpha": agent.config.alpha(1.0), "alpha_end": agent.config.objective_at(0.0, alpha=agent.state.alpha).alpha,
        "divergence": agent.config.objective.divergence.name, "updates": agent.state.updates,
        "tokens": agent.num_timesteps,
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


def rewards_of(out: Path, agent: TextAlgorithm) -> dict[str, Any]:
    """How the reward did while training: texts that it scored or failed at, why first, and what all earned alike."""
    scored, failures = 0, list[str]()
    with (out / ROLLOUTS).open() as file:
        for record in map(json.loads, file):
            scored += record["stop"] != StopReason.TRUNCATED
            # Null, or NaN in a file of an older version.
            if math.isnan(to_float(record["reward"])) and record["stop"] != StopReason.TRUNCATED:
                failures.append(record.get("failure", ""))
    return {
        "scored": scored, "failed": len(failures), "first_failure": next(iter(failures), None),
        "always": agent.constant_reward,
    }  # fmt: skip


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


@contextmanager
def locked(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process.

    Raises: CheckpointError if another holds it; with `wait`, it is waited for instead.
    """
    check_own_file(out / ".lock")
    with (out / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise CheckpointError("out", str(out), "another process works in it; wait for it or stop it") from error
        yield
