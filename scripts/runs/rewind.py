"""Brings a run's folder and its agent back to the newest checkpoint that fits both.

Of several processes the main one looks and cuts; all of them load.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import CHANGEABLE
from rlgkd.agents.state import TrainingState
from rlgkd.agents.watch import Seen
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.scripts._console import say
from rlgkd.scripts.config.changes import AROUND_TRAINING, Change
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.changed_settings import ChangedSettings, changed_settings, restore
from rlgkd.scripts.runs.folder import CHECKPOINTS, CONFIG, EVALUATIONS, GROWING, PROGRESS, ROLLOUTS, SUMMARY, TIMES
from rlgkd.scripts.runs.model_folders import settle
from rlgkd.scripts.runs.overfitting import TrainingRewards
from rlgkd.scripts.runs.rollouts import damaged_lines
from rlgkd.scripts.runs.run_state import OF_THE_MEASURE, Rewound, RunState
from rlgkd.scripts.runs.stages import ended_early, follow
from rlgkd.scripts.runs.tables import cut_rows, number_of_rows, tokens_of_row
from rlgkd.scripts.runs.text_ids import check_text_ids
from rlgkd.teachers.served import ServedTeacher


def rewind(settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console) -> Rewound:
    """Bring agent and growing files to the newest checkpoint that they fit, or to the beginning if there is none yet.

    Raises: as `newest_checkpoint` and `return_to`. Nothing is cut then.
    """
    return return_to(newest_checkpoint(settings, agent, out, console), settings, agent, out, console)


def newest_checkpoint(settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console) -> Checkpoint | None:
    """Find the newest checkpoint that the growing files fit, or None if there is none yet; none changes.

    Raises: CheckpointError if checkpoints that the folder had are lost, or none fits; SettingError if a setting has
    changed with which it cannot go on; ModelError if a server has another teacher than it had.
    """
    return agent.ranks.from_main(lambda: _newest_that_fits(settings, agent, out, console))


def return_to(
    found: Checkpoint | None, settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console
) -> Rewound:
    """Bring agent and growing files to a checkpoint, or to the beginning if there is none.

    Raises: CheckpointError if it is another model's or optimizer's. Nothing is cut then.
    """
    if found is None:
        if agent.ranks.main:
            _cut(out, 0, 0, 0)
            settle(out, None)
        return Rewound()
    follow(settings, agent, found.state)  # before the state comes back, an alpha of which is the stage's
    agent.ranks.together(lambda: restore(found.folder, agent, found.training, found.changed))
    if agent.ranks.main:
        _cut(out, found.training.updates, found.size, found.state.evaluations)
        if damaged := damaged_lines(out / ROLLOUTS):
            lost = (
                f"{ROLLOUTS}: {len(damaged)} damaged lines are left out of what is counted, the first is {damaged[0]}"
            )
            say(console, lost)
    names = [change.setting for change in found.changed.new]
    state = found.state.after_changes(names)
    agent.watch.seen = found.guards
    if any(name in {*CHANGEABLE, *OF_THE_MEASURE} or name.startswith("env_settings.") for name in names):
        agent.watch.seen = Seen(messages=found.guards.messages)  # what is usual now is not known yet
    if agent.ranks.main and (other := settle(out, state.watched.best)):
        say(console, other)
    rewards = TrainingRewards() if state.evaluated is None else found.rewards
    return Rewound(history=[*found.changed.earlier, *found.changed.new], state=state, rewards=rewards)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint from which a run goes on."""

    folder: Path
    training: TrainingState
    size: int
    """Bytes of rollouts.jsonl that it counts on."""
    state: RunState
    guards: Seen
    rewards: TrainingRewards
    content: dict[str, Any]
    """All of its state.json."""
    changed: ChangedSettings = dataclasses.field(default_factory=ChangedSettings)


def _newest_that_fits(settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console) -> Checkpoint | None:
    """See `newest_checkpoint`."""
    checkpoint.remove_stale(out)  # what a process that was killed left half-written or half-replaced
    skipped: list[str] = []
    for folder in checkpoint.whole(out / CHECKPOINTS):
        found = _read(folder)
        stage, training, content = found.state.stage, found.training, found.content
        run = found.state if settings.stages else dataclasses.replace(found.state, stages=())
        if lack := _lack(out, training, found.size, run):
            skipped.append(f"{lack} of {folder.name}")
            continue
        if skipped := [*checkpoint.damages(out / CHECKPOINTS), *skipped]:
            say(console, f"going on from {folder.name}: {'; '.join(skipped)}")
        changed = changed_settings(folder, content, settings, training.timesteps, stage, console)
        new = changed.new
        check_text_ids(content.get("text_ids"), agent, settings.seed, out, [change.setting for change in new])
        _check_goes_on(settings, run, new, training.timesteps)
        if all(change.setting != "teacher" for change in new) and isinstance(agent.outside_teacher, ServedTeacher):
            agent.outside_teacher.check_same(content.get("served_teacher", ()))
        return dataclasses.replace(found, state=run, changed=changed)
    _check_nothing_lost(settings, out, skipped)
    return None


def _check_goes_on(settings: RunConfig, run: RunState, new: Sequence[Change], tokens: int) -> None:
    """Refuse a change that no training would see, since evaluations have ended the run.

    Raises: SettingError.
    """
    idle = [change for change in new if change.setting not in AROUND_TRAINING]
    if idle and ended_early(settings, run.after_changes([change.setting for change in new]), tokens):
        watched, measure = run.stage_watched, "the last stage's measure"
        if run.out_of_patience(settings.patience):
            watched, measure = run.watched, str(settings.keep_best)
        since = f"{watched.since} evaluations were no better in {measure}"
        remedy = f"the run ended early, since {since}; give a greater patience too, or 0, to go on"
        raise SettingError(idle[0].setting, idle[0].new, remedy)


def _read(folder: Path) -> Checkpoint:
    """Return what a whole checkpoint holds besides weights.

    Raises: CheckpointError if it is not a run's, or names a file that runs do not have.
    """
    state = checkpoint.read_state(folder)
    try:
        # Checkpoints of before the first release have the state as `counters`.
        counts = state["training"] if "training" in state else state["counters"]
        training = TrainingState.from_json(counts)
        if lacking := {"updates", "timesteps"} - counts.keys():
            raise KeyError(*lacking)
        run = RunState.from_json(state.get("run", {}))
        guards = Seen.from_json(state.get("guards", {}))
        rewards = TrainingRewards()
        if "training_rewards" in state:
            rewards = TrainingRewards.from_json(state["training_rewards"])
        sizes = state["sizes"]
        unknown = sorted(sizes.keys() - {*GROWING})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("checkpoint", str(folder), f"its state.json is not a run's ({error!r})") from error
    size = sizes.get(ROLLOUTS)
    if unknown or type(size) is not int or size < 0:
        remedy = f"its state.json has sizes of {sorted(sizes.items())}; a run's are those of {', '.join(GROWING)}"
        raise CheckpointError("checkpoint", str(folder), remedy)
    return Checkpoint(
        folder=folder, training=training, size=size, state=run, guards=guards, rewards=rewards, content=state
    )


def _lack(out: Path, training: TrainingState, size: int, run: RunState) -> str | None:
    """Return which growing file has less than a checkpoint counts on; seconds that are lost stop no run."""
    rows, have = number_of_rows(out / PROGRESS), _size(out / ROLLOUTS)
    if rows < training.updates:
        return f"{PROGRESS} has {rows} of the {training.updates} updates"
    if training.updates and tokens_of_row(out / PROGRESS, training.updates) != training.timesteps:
        return f"{PROGRESS} lacks the {training.timesteps} tokens in row {training.updates}"
    if (evaluations := number_of_rows(out / EVALUATIONS)) < run.evaluations:
        return f"{EVALUATIONS} has {evaluations} of the {run.evaluations} evaluations"
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


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cut(out: Path, updates: int, size: int, evaluations: int) -> None:
    """Cut the growing files, which have at least so much (the times maybe less), to a number of updates."""
    for name in (PROGRESS, TIMES):
        cut_rows(out / name, updates)
    cut_rows(out / EVALUATIONS, evaluations)
    if _size(out / ROLLOUTS) > size:
        with (out / ROLLOUTS).open("r+") as rollouts:
            rollouts.truncate(size)
