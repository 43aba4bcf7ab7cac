"""Brings a run's folder and its agent back to the newest checkpoint that fits both.

Of several processes the main one looks and cuts; all of them load.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.state import TrainingState
from rlgkd.errors import CheckpointError
from rlgkd.scripts.config.changes import Change
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.changed_settings import changed_settings, restore
from rlgkd.scripts.runs.recorder import (
    CHECKPOINTS,
    CONFIG,
    GROWING,
    PROGRESS,
    ROLLOUTS,
    SUMMARY,
    TIMES,
    cut_rows,
    number_of_rows,
)


def rewind(settings: RunConfig, agent: TextAlgorithm, out: Path, console: Console) -> list[Change]:
    """Bring agent and growing files to the newest checkpoint that they fit, or to the beginning if there is none yet.

    Returns the settings that have changed since the run began.

    Raises: CheckpointError if checkpoints that the folder had are lost, or none fits; SettingError if a setting has
    changed with which it cannot go on. Nothing is cut then.
    """
    found = agent.ranks.from_main(lambda: _newest_that_fits(settings, out, console))
    if found is not None:
        agent.ranks.together(lambda: restore(found.folder, agent, found.training, found.new))
    if agent.ranks.main:
        _cut(out, found.training.updates if found else 0, found.size if found else 0)
    return [*found.earlier, *found.new] if found else []


def check_own_file(path: Path) -> None:
    """Raise CheckpointError if a file that is cut and appended to is a link, whose target is not the run's."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise CheckpointError("resume", str(path), "it is a link, or no file; put the run's own file in its place")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A checkpoint from which a run goes on."""

    folder: Path
    training: TrainingState
    size: int
    """Bytes of rollouts.jsonl that it counts on."""
    new: list[Change]
    earlier: list[Change]
    """Settings that changed since it was written, and before."""


def _newest_that_fits(settings: RunConfig, out: Path, console: Console) -> _Found | None:
    """Return the newest checkpoint that the growing files fit, or None if there is none yet; see `rewind`."""
    for name in GROWING:
        check_own_file(out / name)
    checkpoint.remove_stale(out)
    skipped: list[str] = []
    for folder in checkpoint.whole(out / CHECKPOINTS):
        training, size, state = _position(folder)
        if lack := _lack(out, training.updates, size):
            skipped.append(f"{lack} of {folder.name}")
            continue
        if skipped := [*checkpoint.damages(out / CHECKPOINTS), *skipped]:
            console.print(f"going on from {folder.name}: {'; '.join(skipped)}", highlight=False, markup=False)
        new, earlier = changed_settings(folder, state, settings, training.timesteps, console)
        return _Found(folder=folder, training=training, size=size, new=new, earlier=earlier)
    _check_nothing_lost(settings, out, skipped)
    return None


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
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError("checkpoint", str(folder), f"its state.json is not a run's ({error!r})") from error
    size = sizes.get(ROLLOUTS)
    if unknown or not isinstance(size, int) or size < 0:
        remedy = f"its state.json has sizes of {sorted(sizes.items())}; a run's are those of {', '.join(GROWING)}"
        raise CheckpointError("checkpoint", str(folder), remedy)
    return training, size, state


def _lack(out: Path, updates: int, size: int) -> str | None:
    """Return which growing file has less than a checkpoint counts on; seconds that are lost stop no run."""
    rows, have = number_of_rows(out / PROGRESS), _size(out / ROLLOUTS)
    if rows < updates:
        return f"{PROGRESS} has {rows} of the {updates} updates"
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


def _cut(out: Path, updates: int, size: int) -> None:
    """Cut the growing files, which have at least so much (the times maybe less), to a number of updates."""
    for name in (PROGRESS, TIMES):
        cut_rows(out / name, updates)
    if _size(out / ROLLOUTS) > size:
        with (out / ROLLOUTS).open("r+") as rollouts:
            rollouts.truncate(size)
