"""Settings that change between two parts of a run: which may, and what is said of those that do.

A run goes on with what its config.yaml holds and `rlgkd train --resume RUN key=value` puts over it. Each checkpoint has
the settings that it was trained with, so whatever differs is found and is kept with the next
checkpoint. Not here: how a changed setting is honoured, which the agent does by being built with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlgkd.errors import SettingError
from rlgkd.scripts._change_text import change_text
from rlgkd.scripts.config.run import RunConfig
from rlgkd.secret_masks import masked

NEEDS_A_NEW_RUN: Final[Mapping[str, str]] = {
    "env": "the order of its prompts is part of what was trained",
    "env_settings.tokenizer": "the trained weights are of its vocabulary",
    "agent": "the checkpoint is that agent's",
    "student": "the checkpoint is of that model",
    "student_layers": "the checkpoint is of these layers",
    "dtype": "the checkpoint's weights are of that precision",
    "lora_rank": "the checkpoint's adapters have that rank",
    "lora_alpha": "the checkpoint's adapters were trained at that scale",
    "teacher_decay": "the checkpoint holds the teacher that moved, or none",
    "seed": "every prompt and every sample follows from it",
}
"""Settings with which a checkpoint cannot go on, and why."""
AROUND_TRAINING: Final = (
    "name",
    "device",
    "threads",
    "eval_split",
    "eval_prompts",
    "eval_seed",
    "eval_forward_kl",
    "checkpoint_every",
    "checkpoint_minutes",
    "checkpoint_format",
    "trackers",
    "tracker_project",
    "tracker_texts",
    "tracker_texts_every",
    "process_timeout",
    "sharding",
    "teacher_device",
    "teacher_requests",
    "teacher_retries",
    "teacher_timeout",
    "max_failed_teacher",
    "sampler",
    "sampler_weights",
    "sampler_folder",
    "sampler_timeout",
    "sampler_retries",
    "sampler_requests",
    "max_failed_sampler",
    "rows_at_once",
    "compile_decoding",
    "saved_dtype",
    "save_adapter",
)
"""Settings that a run which has all its tokens may change too: they matter for its evaluation, or for what is saved."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that had another value in an earlier part of the run."""

    setting: str
    old: Any
    new: Any
    """Plain values; None where the setting did not exist, as a parameter of a divergence that was not chosen."""
    tokens: int
    """Tokens that had been trained for."""

    def __str__(self) -> str:
        """Return `alpha: 0.5 -> 0.25 after 1,200 tokens`."""
        return change_text(self.setting, self.old, self.new, f"{self.tokens:,}")


def changes(before: RunConfig, now: RunConfig, tokens: int) -> list[Change]:
    """Return what changed after `tokens` tokens of training, by setting.

    Raises: SettingError for a setting that needs a new run, for fewer tokens than the run has, and for a change that
    would have no effect since the run has all its tokens.

    Examples:
        >>> before = RunConfig(agent="GRPO", tokens=600)
        >>> [str(change) for change in changes(before, RunConfig(agent="GRPO", tokens=1200), 612)]
        ['tokens: 600 -> 1200 after 612 tokens']
    """
    old, new = _plain(before), _plain(now)
    names = [name for name in {**old, **new} if not _same(old.get(name), new.get(name))]
    for name in names:
        reason = NEEDS_A_NEW_RUN.get(name)
        if name == "teacher" and now.algorithm.teacher.teacher_decay is not None:
            reason = NEEDS_A_NEW_RUN["teacher_decay"]
        if reason:
            remedy = f"a run cannot change it, {reason}: set it back to {old.get(name)!r}, or begin a new run"
            raise SettingError(name, new.get(name), remedy)
    if "tokens" in names and now.tokens < tokens:
        raise SettingError("tokens", now.tokens, f"the run has trained for {tokens} already; give more")
    if now.tokens <= tokens and (idle := [name for name in names if name not in AROUND_TRAINING]):
        remedy = f"the run has all its tokens, so it had no effect; give tokens above {tokens} too, or set it back"
        raise SettingError(idle[0], new.get(idle[0]), remedy)
    return [Change(setting=name, old=old.get(name), new=new.get(name), tokens=tokens) for name in names]


def course_of_schedules(before: RunConfig, now: RunConfig, tokens: int) -> str:
    """Say where what is scheduled goes on if the end of all schedules has moved; empty if it has not.

    Examples:
        >>> before = RunConfig(agent="GRPO", tokens=600, learning_rate=0.001)
        >>> course_of_schedules(before, before.model_copy(update={"tokens": 1200}), 600)
        'schedules now end at 1,200 tokens: the learning rate goes on at 0.000559, where it stood at 0.0001'
    """
    if now.tokens == before.tokens:
        return ""
    if before.stages or now.stages:
        return f"schedules now end at {now.tokens:,} tokens, those of a stage with it"
    pieces = []
    for what, old, new in (
        ("the learning rate", before.learning_rate, now.learning_rate),
        ("alpha", before.algorithm.alpha, now.algorithm.alpha),
        ("student_fraction", before.algorithm.student_fraction, now.algorithm.student_fraction),
    ):
        stood, goes_on = (value(max(0.0, 1.0 - tokens / run.tokens)) for value, run in ((old, before), (new, now)))
        if what == "the learning rate" or stood != goes_on:
            pieces.append(f"{what} goes on at {goes_on:.3g}, where it stood at {stood:.3g}")
    return f"schedules now end at {now.tokens:,} tokens: {'; '.join(pieces)}"


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return the settings as a checkpoint's JSON has them, the environment's each under its own name."""
    flat = json.loads(json.dumps(masked(config.flat())))
    of_the_environment = flat.pop("env_settings")
    return {**flat, **{f"env_settings.{name}": value for name, value in of_the_environment.items()}}


def _same(old: Any, new: Any) -> bool:
    """Return whether two values are equal, but for paths of what was moved as it is, as with the folder of a run."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[name], new[name]) for name in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    was, now = (Path(re.sub(r"\.py:\w+$", ".py", text)) for text in (old, new))  # a function of a file
    moved = was.is_absolute() and was.name == now.name and not was.exists() and now.exists()
    return old == new or moved
