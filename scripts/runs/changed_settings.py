"""Goes on from a checkpoint with settings that have changed since: what is restored, what is said and kept of them.

Which settings may change, and how a change reads, is in rlgkd.scripts.config.changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.old_settings import upgraded
from rlgkd.agents.state import TrainingState
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.scripts._console import say
from rlgkd.scripts.config.changes import Change, changes, course_of_schedules
from rlgkd.scripts.config.reading import check
from rlgkd.scripts.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class ChangedSettings:
    """What differs between the settings of a checkpoint and those with which a run goes on."""

    new: Sequence[Change] = ()
    """What changed since the checkpoint."""
    earlier: Sequence[Change] = ()
    """What changed before it."""
    alpha: bool = False
    """Whether the alpha at which steering begins, the present stage's own, is another one."""


def changed_settings(
    folder: Path, state: Mapping[str, Any], now: RunConfig, tokens: int, stage: int, console: Console
) -> ChangedSettings:
    """Find what changed since the checkpoint `folder`, written in a stage counted from 0, and say it.

    Raises: SettingError for a change that needs a new run; CheckpointError if the state has no such settings.
    """
    saved = state.get("settings")
    try:
        kept = state.get("changes", [])
        if not all(isinstance(change["setting"], str) and type(change["tokens"]) is int for change in kept):
            raise TypeError(f"its changes are {kept}")
        earlier = [Change(**change) for change in kept]
        before = None if saved is None else check(upgraded(saved, saved["agent"]))
    except SettingError as error:  # of a version that took other settings
        say(console, f"{folder.name} was trained with settings that are not known here: {error}")
        return ChangedSettings(earlier=earlier)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("checkpoint", str(folder), f"its state.json is not a run's ({error!r})") from error
    if before is None:  # a checkpoint of before the first release may have none
        return ChangedSettings(earlier=earlier)
    new = changes(before, now, tokens)
    for line in [*(f"changed: {change}" for change in new), course_of_schedules(before, now, tokens)]:
        if line:
            say(console, line)
    # Fewer stages than have begun are refused by `follow`.
    stages = [min(stage, max(0, len(run.stages) - 1)) for run in (before, now)]
    alphas = [run.in_stage(number).algorithm.alpha for run, number in zip((before, now), stages, strict=True)]
    return ChangedSettings(new=new, earlier=earlier, alpha=alphas[0] != alphas[1])


def restore(folder: Path, agent: TextAlgorithm, training: TrainingState, changed: ChangedSettings) -> None:
    """Bring the agent to a whole checkpoint; what its own settings say and a checkpoint holds too is the settings'.

    Raises: CheckpointError if the checkpoint is another model's or optimizer's.
    """
    optimizer = agent.policy.optimizer
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    checkpoint.load(folder, model=agent.modules, optimizer=optimizer)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    agent.state = training
    if agent.steering is None or changed.alpha:
        training.alpha = None
