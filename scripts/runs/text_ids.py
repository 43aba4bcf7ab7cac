"""What a run's token ids depend on besides its settings: the day that a chat template shows, tokenizer and template.

A run that is resumed later goes on with the ids that it began with, or is refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.dialogue import task_end_ids
from rlgkd.envs.registry import takes_setting
from rlgkd.errors import CheckpointError
from rlgkd.scripts.config.run import RunConfig
from rlgkd.teachers import AlignedTeacher, RoutedTeachers
from rlgkd.types import Task

DAY = "chat_template_date"
PROMPTS = 4
"""Prompts of the training split whose ids are compared."""
VOCABULARY = "vocabulary of the tokenizer"
ENDS = "end tokens"
FIRST_PROMPTS = "token ids of the first prompts (data, chat template and its day, tokenizer)"
AS_THE_TEACHER_READS = "token ids of the first prompts as the teacher reads them"
WRITE_NO_PROMPTS = (
    "at_limit",
    "end_tokens",
    "max_failed_rewards",
    "max_new_tokens",
    "name",
    "quality",
    "reward",
    "reward_timeout",
    "skip_special_tokens",
    "stop",
)
"""Settings of an environment from which no prompt follows; any other one may change the prompts."""
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
        VOCABULARY: _digest(vocabulary),
        ENDS: sorted(task_end_ids(task)),
        FIRST_PROMPTS: _digest([task.encode_prompt(item) for item in items]),
    }
    readers = [teacher.of(item) if isinstance(teacher, RoutedTeachers) else teacher for item in items]
    formats = [one.form if isinstance(one, AlignedTeacher) else getattr(one, "format", None) for one in readers]
    if known := [(form, item) for form, item in zip(formats, items, strict=True) if form is not None]:
        read = [form.encode_prompt(item) for form, item in known]
        own_reply = known[0][0].encode_reply
        replies = [own_reply("Go on", True)] if known[0][0].replies and own_reply is not None else []
        found[AS_THE_TEACHER_READS] = _digest([*read, *replies])
    return found


def check_text_ids(
    known: Any, agent: TextAlgorithm, seed: int, out: Path, changed_settings: Collection[str] = ()
) -> None:
    """Raise CheckpointError if a checkpoint knows other ids than the agent has now; older ones know none.

    What `changed_settings` say, which have changed since by name, may differ.
    """
    if known is None:
        return
    if not isinstance(known, dict):
        remedy = f"its checkpoint has {known!r:.60} as the ids of its texts; use another one"
        raise CheckpointError("resume", str(out), remedy)
    now = text_ids(agent, seed)
    meant = _of_settings(changed_settings)
    changed = [name for name in {**now, **known} if name not in meant and known.get(name) != now.get(name)]
    if changed:
        remedy = f"since it began, its {changed[0]} changed; put back what was there, or begin again with another --out"
        raise CheckpointError("resume", str(out), remedy)


def _of_settings(changed: Collection[str]) -> set[str]:
    """Return which of the ids may follow from the changed settings."""
    of_env = {name.removeprefix("env_settings.") for name in changed if name.startswith("env_settings.")}
    meant = {FIRST_PROMPTS, AS_THE_TEACHER_READS} if of_env - {*WRITE_NO_PROMPTS} else set()
    # Whether a teacher has a format of its own depends on the end tokens too.
    if {"teacher", "teacher_column", "teacher_prompt"} & set(changed) or "end_tokens" in of_env:
        meant.add(AS_THE_TEACHER_READS)
    return meant | ({ENDS} if "end_tokens" in of_env else set())


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
