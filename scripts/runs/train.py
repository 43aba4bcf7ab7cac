"""Trains from settings into a run's folder, and continues it exactly: `rlgkd train`.

The folder holds config.yaml (resolved; runs again as it is), progress.csv, times.csv, TensorBoard events,
rollouts.jsonl, checkpoints/step-N, model/ (a Hugging Face folder), summary.json and report.html. A checkpoint knows
how long the growing files were, so a continued run cuts them to that length and ends with the files of one never
stopped (but for the seconds in times.csv).
"""

from __future__ import annotations

import copy
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.state import TrainingState
from rlgkd.envs.registry import takes_tokenizer, text_env_ids
from rlgkd.envs.sb3 import TextVecEnv, make_sb3_vec_env
from rlgkd.errors import CheckpointError, RlgkdError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm.loading import copy_sharing_frozen
from rlgkd.ops._registry import UnknownSettingError, unknown_remedy
from rlgkd.scripts._console import say
from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.config.run import RunConfig, dump, read
from rlgkd.scripts.report import html, terminal
from rlgkd.scripts.report.remarks import remarks
from rlgkd.scripts.runs.allocator import keep_freed_memory, keep_freed_memory_after_first
from rlgkd.scripts.runs.changed_settings import changed_settings, restore
from rlgkd.scripts.runs.events import events_if_installed
from rlgkd.scripts.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    GROWING,
    MODEL,
    PROGRESS,
    ROLLOUTS,
    SUMMARY,
    TENSORBOARD,
    TIMES,
    check_names,
    check_new,
    locked,
)
from rlgkd.scripts.runs.recorder import (
    ProgressCsv,
    Recorder,
    TimesCsv,
    cut_rows,
    number_of_rows,
    strict_json,
    tokens_of_row,
)
from rlgkd.scripts.runs.rollouts import damaged_lines
from rlgkd.scripts.runs.stopping import StopRequest, stoppable
from rlgkd.scripts.runs.summary import rewards_of, summarise
from rlgkd.scripts.runs.text_ids import check_text_ids, text_ids, with_day


def start(settings: RunConfig, out: Path, *, quiet: bool = False) -> Path:
    """Train into a new folder; returns the report's path.

    Raises: CheckpointError if the folder is in use; SettingError, ModelError and DataError before anything is written.
    """
    check_new(out)
    agent = build_agent(settings)
    settings = with_day(settings, agent.task)
    made = [folder for folder in out.parents if not folder.exists()]
    with checkpoint.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        checkpoint.atomic_write(out / CONFIG, dump(settings))
        try:
            return _run(settings, agent, out, quiet)
        except RlgkdError:
            if not (out / PROGRESS).exists():  # refused before any training: leave nothing
                shutil.rmtree(out)
                for parent in made:
                    with suppress(OSError):  # another run has settled in it
                        parent.rmdir()
            raise


def resume(out: Path, overrides: Sequence[str] = (), *, quiet: bool = False) -> Path:
    """Continue a run's folder from its newest checkpoint that fits, or from its beginning if there is none yet.

    Settings may have changed: by `key=value` overrides, which config.yaml then holds, or by an edit of that file; see
    rlgkd.scripts.config.changes.

    Raises: CheckpointError if the folder holds no run, its checkpoints are lost, or another process trains in it;
    SettingError for a change that needs a new run.
    """
    if not (out / CONFIG).exists():
        raise CheckpointError("resume", str(out), "give the folder of a run; it must hold config.yaml")
    check_names(out)
    settings = read(out / CONFIG, overrides)
    with locked(out):
        return _run(settings, build_agent(settings), out, quiet)


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


def _run(settings: RunConfig, agent: TextAlgorithm, out: Path, quiet: bool) -> Path:
    """Evaluate, train from where the folder's checkpoints have come, evaluate, write model, summary and report.

    Ctrl-C and SIGTERM exit, in training with a checkpoint of the last whole update; see `stoppable`.
    """
    console = Console(stderr=True)
    with stoppable(f"rlgkd train --resume {shlex.quote(str(out))}", console) as stop:
        return _evaluated_run(settings, agent, out, quiet, console, stop)


def _evaluated_run(
    settings: RunConfig, agent: TextAlgorithm, out: Path, quiet: bool, console: Console, stop: StopRequest
) -> Path:
    say(console, f"{settings.name}: {agent.task.name}, {settings.tokens:,} tokens, into {out}")
    began = time.perf_counter()
    scored: dict[str, Any] = {
        "split": settings.eval_split,
        "prompts": settings.eval_prompts,
        "seed": settings.eval_seed,
    }
    # Everything is measured against the teacher of the beginning, although training may move it.
    student = copy_sharing_frozen(agent.student) if (out / CHECKPOINTS).exists() else agent.student
    teacher = copy.deepcopy(agent.teacher) if agent.following_teacher is not None else agent.teacher
    history = rewind(settings, agent, out, console)
    if settings != read(out / CONFIG):  # the command line changed some, and the run can go on with them
        checkpoint.atomic_write(out / CONFIG, dump(settings))
    before = evaluate(student, teacher, agent.task, **scored)
    taught = evaluate(teacher, teacher, agent.task, **scored) if teacher else None
    say(
        console,
        f"evaluated {settings.eval_prompts} {settings.eval_split} prompts in {time.perf_counter() - began:.0f} s",
    )
    fit(settings, agent, out, stop, history, quiet=quiet, console=console)
    after = evaluate(agent.student, teacher, agent.task, **scored)
    summary = summarise(settings, agent, before, after, taught)
    summary["rewards"] = rewards_of(out, agent)
    if history:
        summary["changes"] = [asdict(change) for change in history]
    summary["seconds"] = round(time.perf_counter() - began, 1)
    checkpoint.atomic_write(out / SUMMARY, strict_json(summary, indent=1) + "\n")
    page = html.write_report(out)
    console.print(terminal.score_table(summary))
    for remark in remarks(summary):
        say(console, remark, style="yellow")
    return page


def rewind(settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console) -> list[Change]:
    """Bring agent and growing files to the newest checkpoint that they fit, or to the beginning if there is none yet.

    Returns the settings that have changed since the run began.

    Raises: CheckpointError if checkpoints that the folder had are lost, or none fits; SettingError if a setting has
    changed with which it cannot go on. Nothing is cut then.
    """
    checkpoint.remove_stale(out)
    skipped = []
    for folder in checkpoint.whole(out / CHECKPOINTS):
        training, size, state = _position(folder)
        if lack := _lack(out, training, size):
            skipped.append(f"{lack} of {folder.name}")
            continue
        if skipped := [*checkpoint.damages(out / CHECKPOINTS), *skipped]:
            say(console, f"going on from {folder.name}: {'; '.join(skipped)}")
        new, earlier = changed_settings(folder, state, settings, training.timesteps, console)
        if not any(change.setting.startswith("env_settings.") for change in new):
            check_text_ids(state.get("text_ids"), agent, settings.seed, out)
        restore(folder, agent, training, new)
        _cut(out, training.updates, size)
        if damaged := damaged_lines(out / ROLLOUTS):
            lost = (
                f"{ROLLOUTS}: {len(damaged)} damaged lines are left out of what is counted, the first is {damaged[0]}"
            )
            say(console, lost)
        return [*earlier, *new]
    _check_nothing_lost(settings, out, skipped)
    _cut(out, 0, 0)
    return []


def _position(folder: Path) -> tuple[TrainingState, int, dict[str, Any]]:
    """Return the state of training of a whole checkpoint, the size of rollouts.jsonl that it counts on, and the rest.

    Raises: CheckpointError if it is not a run's, or names a file that runs do not have.
    """
    state = checkpoint.read_state(folder)
    try:
        # Checkpoints of before the first release have the state as `counters`.
        training = TrainingState.from_json(state["training"] if "training" in state else state["counters"])
        sizes = state["sizes"]
        unknown = sorted(sizes.keys() - {*GROWING})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("checkpoint", str(folder), f"its state.json is not a run's ({error!r})") from error
    size = sizes.get(ROLLOUTS)
    if unknown or not isinstance(size, int) or size < 0:
        remedy = f"its state.json has sizes of {sorted(sizes.items())}; a run's are those of {', '.join(GROWING)}"
        raise CheckpointError("checkpoint", str(folder), remedy)
    return training, size, state


def _lack(out: Path, training: TrainingState, size: int) -> str | None:
    """Return which growing file has less than a checkpoint counts on; seconds that are lost stop no run."""
    rows, have = number_of_rows(out / PROGRESS), _size(out / ROLLOUTS)
    if rows < training.updates:
        return f"{PROGRESS} has {rows} of the {training.updates} updates"
    if training.updates and tokens_of_row(out / PROGRESS, training.updates) != training.timesteps:
        return f"{PROGRESS} lacks the {training.timesteps} tokens in row {training.updates}"
    return f"{ROLLOUTS} has {have} of the {size} bytes" if have < size else None


def _check_nothing_lost(settings: RunConfig, out: Path, skipped: list[str]) -> None:
    """Raise CheckpointError if a run that no checkpoint continues has had some; a short one may have had none yet."""
    lost = [*checkpoint.damages(out / CHECKPOINTS), *skipped]
    rows = number_of_rows(out / PROGRESS)
    if not lost and (rows or _size(out / ROLLOUTS)):  # `fit` makes the folder before it trains
        had = not (out / CHECKPOINTS).is_dir() or (out / SUMMARY).exists() or rows > settings.checkpoint_every
        lost = [f"{CHECKPOINTS} is missing or empty after {rows} updates"] if had else []
    if lost:
        again = f"rlgkd train {shlex.quote(str(out / CONFIG))} --out ANOTHER"
        raise CheckpointError("resume", str(out), f"{'; '.join(lost)}; put it back, or begin again: {again}")


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
    with checkpoint.writing(out / CHECKPOINTS):
        (out / CHECKPOINTS).mkdir(exist_ok=True)  # before the files that grow: if it is missing, it was deleted
    outputs = [ProgressCsv(out / PROGRESS), TimesCsv(out / TIMES), *events_if_installed(out / TENSORBOARD)]
    with checkpoint.GrowingFile(out / ROLLOUTS) as rollouts, closing(Logger(str(out), outputs)) as logger:
        agent.set_logger(logger)
        remaining = settings.tokens - agent.num_timesteps
        if remaining > 0:
            ids = text_ids(agent, settings.seed)
            recorder = Recorder(settings, out, rollouts, stop, history, ids, quiet=quiet, console=console)
            keep_freed_memory_after_first(agent.policy.optimizer)
            with stop.at_whole_update(), closing(recorder):
                agent.learn(remaining, callback=recorder, reset_num_timesteps=False)
    _save_model(agent, out / MODEL)


def _save_model(agent: TextAlgorithm, folder: Path) -> None:
    """The model's folder, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with checkpoint.writing(folder, "free space, then --resume"):
        try:
            agent.save(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cut(out: Path, updates: int, size: int) -> None:
    """Cut the growing files, which have at least so much (the times maybe less), to a number of updates."""
    for name in (PROGRESS, TIMES):
        cut_rows(out / name, updates)
    if _size(out / ROLLOUTS) > size:
        with (out / ROLLOUTS).open("r+") as rollouts:
            rollouts.truncate(size)
