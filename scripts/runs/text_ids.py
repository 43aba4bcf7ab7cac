"""What a run's token ids depend on besides its settings: the day that a chat template shows, tokenizer and template.

A run that is resumed later goes on with the ids that it began with, or is refused.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.dialogue import task_end_ids
from rlgkd.envs.registry import takes_setting
from rlgkd.errors import CheckpointError
from rlgkd.scripts.config.run import RunConfig
from rlgkd.types import Task

DAY = "chat_template_date"
PROMPTS = 4
"""Prompts of the training split whose ids are compared."""
_log = logging.getLogger(__name__)


def with_day(settings: RunConfig, task: Task) -> RunConfig:
    """The settings of a run that begins, with the day that its chat template shows, if it shows one."""
    template = getattr(task, "chat_template", None)
    if template is None or not template.shows_the_day or settings.env_settings.get(DAY):
        return settings
    if not takes_setting(settings.env, DAY):
        _log.warning(
            "the chat template shows the day, and %s takes no %s: a run that is resumed on another day is refused",
            settings.env,
            DAY,
        )
        return settings
    return settings.model_copy(update={"env_settings": {**settings.env_settings, DAY: template.day.isoformat()}})


def text_ids(agent: TextAlgorithm, seed: int) -> dict[str, Any]:
    """What identifies the ids of an agent's texts, by what a user would look at if they differ."""
    task, teacher = agent.task, agent.teacher
    items = [task.item(agent.split, seed, index) for index in range(PROMPTS)]
    vocabulary = sorted(task.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    found = {
        "vocabulary of the tokenizer": _digest(vocabulary),
        "end tokens": sorted(task_end_ids(task)),
        "token ids of the first prompts (data, chat template and its day, tokenizer)": _digest(
            [task.encode_prompt(item) for item in items]
        ),
    }
    if teacher is not None and teacher.format is not None:
        found["token ids of the first prompts as the teacher reads them"] = _digest(
            [teacher.format.encode_prompt(item) for item in items]
        )
    return found


def check_text_ids(known: dict[str, Any] | None, agent: TextAlgorithm, seed: int, out: Path) -> None:
    """Raise CheckpointError if a checkpoint knows other ids than the agent has now; older ones know none."""
    if known is None:
        return
    now = text_ids(agent, seed)
    changed = [name for name, value in now.items() if known.get(name) != value]
    if changed:
        remedy = f"since it began, its {changed[0]} changed; put back what was there, or begin again with another --out"
        raise CheckpointError("resume", str(out), remedy)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
