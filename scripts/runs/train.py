"""Trains from settings into a run's folder, and continues it exactly: `rlgkd train`.

The folder holds config.yaml (resolved; runs again as it is), progress.csv, times.csv, TensorBoard events,
rollouts.jsonl, checkpoints/step-N, model/ (a Hugging Face folder), summary.json and report.html. A checkpoint knows
how long the growing files were, so a continued run cuts them to that length and ends with the files of one never
stopped (but for the seconds in times.csv).
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.gating import extra_work
from rlgkd.envs.registry import takes_tokenizer, text_env_ids
from rlgkd.envs.sb3 import TextVecEnv, make_sb3_vec_env
from rlgkd.errors import CheckpointError, DataError, ModelError, RlgkdError, SettingError, one_line, unknown_remedy
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.lm.model import LanguageModel
from rlgkd.ops._registry import UnknownSettingError
from rlgkd.ranks import TIMEOUT_MINUTES, join
from rlgkd.scripts._console import say
from rlgkd.scripts.config.reading import dump, read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report import card, html, terminal
from rlgkd.scripts.report.remarks import remarks
from rlgkd.scripts.runs.allocator import keep_freed_memory
from rlgkd.scripts.runs.fit import fit
from rlgkd.scripts.runs.folder import CONFIG, PROGRESS, SUMMARY, check_names, check_new, locked
from rlgkd.scripts.runs.input_files import input_files
from rlgkd.scripts.runs.recorder import strict_json
from rlgkd.scripts.runs.rewind import newest_checkpoint, return_to
from rlgkd.scripts.runs.speed import speed
from rlgkd.scripts.runs.stages import check_agent, check_goals
from rlgkd.scripts.runs.stopping import StopRequest, stoppable
from rlgkd.scripts.runs.summary import (
    held_out,
    learns_from_references_alone,
    objective_text,
    rewards_of,
    stages,
    summarise,
)
from rlgkd.scripts.runs.text_ids import with_day
from rlgkd.scripts.runs.tracked import send_evaluation, tracked
from rlgkd.scripts.tracking.libraries import check_trackers
from rlgkd.scripts.tracking.trackers import Trackers
from rlgkd.secret_masks import masked
from rlgkd.teachers import RoutedTeachers
from rlgkd.types import Task, reads_sibling


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
    out = ranks.from_main(lambda: _checked_new(out.absolute()))  # a reward may change the process's folder
    agent = ranks.together(lambda: build_agent(settings))
    settings = with_day(settings, agent.task).with_layers(agent.config.model.student_layers)
    ranks.together(lambda: check_trackers(settings.trackers))
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
    out = out.absolute()  # a reward may change the process's folder

    def read_settings() -> RunConfig:
        if not (out / CONFIG).exists():
            raise CheckpointError("resume", str(out), "give the folder of a run; it must hold config.yaml")
        check_names(out)
        run = read(out / CONFIG, overrides)
        check_trackers(run.trackers)
        return run

    settings = agreed_settings(read_settings)
    ranks = join()
    with ExitStack() as held:
        ranks.together(lambda: held.enter_context(locked(out)) if ranks.main else None)
        return _run(settings, ranks.together(lambda: build_agent(settings)), out, quiet)


def what_more_gains(student: Evaluation, teacher: Evaluation) -> str:
    """Say how much better a teacher that sees more writes than the student before training, on the same items."""
    gain = teacher.change_from(student)["reward"]
    ours, theirs = (scores.scores()["reward"].mean for scores in (student, teacher))
    line = f"with its prompt the teacher's reward is {theirs:.3f}, the student's {ours:.3f}: {gain.mean:+.3f}"
    line = f"{line} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return line if gain.low > 0 else f"{line}; a teacher that does not gain by it may have nothing to teach"


def _checked_new(out: Path) -> Path:
    check_new(out)
    return out


@contextmanager
def _new_folder(settings: RunConfig, out: Path) -> Iterator[None]:
    """Hold a folder that has the run's config.yaml; one in which no training began is removed again after an error."""
    made = [folder for folder in out.parents if not folder.exists()]
    with checkpoint.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        try:
            checkpoint.atomic_write(out / CONFIG, dump(settings))
            yield
        except RlgkdError:
            if not (out / PROGRESS).exists():  # refused before any training: leave nothing
                shutil.rmtree(out, ignore_errors=True)
                for parent in made:
                    with suppress(OSError):  # another run has settled in it
                        parent.rmdir()
            raise


def build_agent(settings: RunConfig) -> TextAlgorithm:
    """The agent on its environment, as the settings say."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()  # for the evaluation at the start; `fit` begins once more, with what training keeps in place
    env = make_env(settings.env, settings.env_settings, student=settings.student, seed=settings.seed)
    agent = settings.algorithm_class(env=env, **settings.in_stage(0).agent_arguments())
    check_agent(settings, agent)
    _check_splits(settings, agent.task)
    return agent


def _check_splits(settings: RunConfig, task: Task) -> None:
    """Raise SettingError for a split of evaluations that the task does not have, before anything is measured."""
    for name in ("eval_split", *(["eval_every_split"] if settings.eval_every else [])):
        split = getattr(settings, name)
        try:
            task.size(split)
        except (DataError, SettingError) as error:
            if error.field != "split":
                raise
            raise SettingError(name, split, error.remedy) from error


def make_env(
    env: str, env_settings: Mapping[str, Any], *, student: str, seed: int, called: str = "student"
) -> TextVecEnv:
    """The registered environment for an agent, with the student's tokenizer where the settings name no other.

    `called` is the setting or argument that names the student.

    Raises: SettingError for an unknown id (the nearest is named) or a setting that the environment does not take;
        ModelError for a tokenizer that cannot be opened, by the setting that names it.
    """
    arguments = env_arguments(env, env_settings, student=student)
    try:
        return make_sb3_vec_env(env, seed=seed, **arguments)
    except ModelError as error:
        if error.field not in ("model", "tokenizer") or error.value != arguments.get("tokenizer"):
            raise
        own = env_settings.get("tokenizer") is not None
        raise ModelError("env_settings.tokenizer" if own else called, error.value, error.remedy) from error
    except gym.error.Error as error:
        raise SettingError("env", env, unknown_remedy(env, text_env_ids())) from error
    except UnknownSettingError as error:
        raise SettingError(f"env_settings.{error.field}", error.value, error.remedy) from error
    except ImportError as error:  # of the module in `module:id`
        raise SettingError("env", env, f"it could not be imported: {one_line(error, 200)}") from error
    except TypeError as error:
        if ":" not in env and env not in text_env_ids():
            raise SettingError("env", env, unknown_remedy(env, text_env_ids())) from error
        raise SettingError("env_settings", env_settings, str(error)) from error


def env_arguments(env: str, env_settings: Mapping[str, Any], *, student: str) -> dict[str, Any]:
    """What the environment is made with: its settings, and the student's tokenizer where they name no other."""
    own = {"tokenizer": student} if env_settings.get("tokenizer") is None and takes_tokenizer(env) else {}
    return {**env_settings, **own}


def _run(settings: RunConfig, agent: TextAlgorithm, out: Path, quiet: bool) -> Path | None:
    """Evaluate, train from where the folder's checkpoints have come, evaluate, write model, summary and report.

    Ctrl-C, SIGTERM and SIGHUP exit, in training with a checkpoint of the last whole update; see `stoppable`.
    """
    console = Console(stderr=True, quiet=not agent.ranks.main)
    command = f"rlgkd train --resume {shlex.quote(str(out))}"
    with (
        stoppable(command, console, second_ends=agent.ranks.size == 1) as stop,
        tracked(settings, out, console, main=agent.ranks.main) as trackers,
        agent.ranks.in_step(),
    ):
        return _evaluated_run(settings, agent, out, quiet, console, stop, trackers)


def _evaluated_run(
    settings: RunConfig,
    agent: TextAlgorithm,
    out: Path,
    quiet: bool,
    console: Console,
    stop: StopRequest,
    trackers: Trackers,
) -> Path | None:
    ranks = agent.ranks
    processes = "1 process" if ranks.size == 1 else f"{ranks.size} processes"
    say(console, f"{settings.name}: {agent.task.name}, {settings.tokens:,} tokens, {processes}, into {out}")
    say(console, f"it learns from {objective_text(settings)}")
    if work := extra_work(agent.objective.gate.name):
        say(console, f"gate {agent.objective.gate.name}: before its gradient, each update {work}")
    began = time.perf_counter()
    scored: dict[str, Any] = {
        "split": settings.eval_split,
        "prompts": settings.eval_prompts,
        "seed": settings.eval_seed,
        "forward_kl": settings.eval_forward_kl,
        "ranks": ranks,
    }
    made_from = input_files(settings)
    # Everything is measured against the teacher of the beginning, although training may move it.
    teacher = agent.teacher
    if agent.following_teacher is not None:
        teacher = agent.following_teacher.as_it_is()
    newest = newest_checkpoint(settings, agent, out, console)
    if ranks.main and settings != read(out / CONFIG):  # the command line changed some, and the run can go on with them
        checkpoint.atomic_write(out / CONFIG, dump(settings))
    both = (
        isinstance(teacher, LanguageModel | RoutedTeachers) and not settings.teacher_writes_as_start
    )  # any other writes no texts
    whose = "the student and the teacher" if both else "the student"
    if teacher is not None and learns_from_references_alone(settings):
        say(console, "the teacher is measured and not learned from, for references are: teacher=null saves the time")
    prompts = min(settings.eval_prompts, agent.task.size(settings.eval_split))
    say(console, f"evaluating {whose} on {prompts} {settings.eval_split} prompts")
    before = evaluate(agent.student, teacher, agent.task, **scored)  # as it began, which a checkpoint will change
    taught = before if settings.teacher_writes_as_start else None
    if isinstance(teacher, LanguageModel | RoutedTeachers) and taught is None:
        taught = evaluate(teacher, teacher, agent.task, **scored)
    evaluating = time.perf_counter() - began
    say(console, f"evaluated {len(before.trajectories)} {settings.eval_split} prompts in {evaluating:.0f} s")
    more = settings.algorithm.teacher.teacher_prompt
    if taught is not None and more is not None and not reads_sibling(more):
        say(console, what_more_gains(before, taught))
    check_goals(settings, before.measures)
    send_evaluation(trackers, before, 0)
    if taught is not None:
        send_evaluation(trackers, taught, 0, part="teacher")
    found = return_to(newest, settings, agent, out, console)
    state = fit(settings, agent, out, stop, found, teacher, trackers=trackers, quiet=quiet, console=console)
    trained = time.perf_counter()
    after = evaluate(agent.student, teacher, agent.task, **scored)
    evaluating += time.perf_counter() - trained
    send_evaluation(trackers, after, agent.num_timesteps)
    if not ranks.main:
        return None
    summary = summarise(settings, agent, before, after, taught)
    summary["rewards"] = rewards_of(out, agent)
    summary["sources"] = made_from
    summary["warnings"] = agent.watch.messages
    if found.history:
        summary["changes"] = [asdict(change) for change in found.history]
    if settings.eval_every:
        summary["held_out"] = held_out(settings, state)
    if settings.stages:
        summary["stages"] = stages(settings, state, agent.num_timesteps)
    summary["speed"] = speed(out, agent.num_timesteps, evaluating, agent.device)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    checkpoint.atomic_write(out / SUMMARY, strict_json(summary, indent=1) + "\n")
    page = html.write_report(out)
    card.write_card(out)
    console.print(terminal.score_table(summary))
    for remark in remarks(summary):
        say(console, remark, style="yellow")
    return page
