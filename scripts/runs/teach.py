"""Writes a teacher's log-probabilities of texts into a file, with which a student is taught later: `rlgkd teach`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents import Distill
from rlgkd.errors import SettingError, TeacherError, one_line
from rlgkd.file_kinds import other_kind
from rlgkd.item_checks import MAX_CHECKED
from rlgkd.lm.model import LanguageModel
from rlgkd.scripts._console import say
from rlgkd.scripts.config import reading
from rlgkd.scripts.config.paths import settled
from rlgkd.scripts.config.recipes import recipe_names
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.train import make_env
from rlgkd.secret_masks import masked
from rlgkd.teachers import KnownText, OutsideTeacher, in_process
from rlgkd.teachers.file_format import Contents, TextsOf, fingerprint, to_bytes
from rlgkd.teachers.module import ModuleTeacher
from rlgkd.teachers.names import FILE_ENDING, is_address, is_teacher_file
from rlgkd.types import Episode

AT_ONCE = 32
"""Texts that the teacher sees together."""
KEPT = (
    "dtype", "teacher_dtype", "teacher_quantization", "teacher_device", "teacher_timeout", "teacher_retries",
    "teacher_requests", "temperature", "train_prompts",
)  # fmt: skip
"""Settings of a run on which its texts and its teacher depend, besides the environment, the student and the seed."""


def teach(
    data: str,
    overrides: Sequence[str] = (),
    *,
    teacher: str,
    top_k: int,
    out: Path,
    texts: TextsOf = "references",
    split: str = "train",
    prompts: int | None = None,
) -> None:
    """Write what a teacher says of the texts of a run that is to come.

    Args:
        data: The run's recipe or YAML file, or a data file for `rlgkd/Dataset-v0`.
        overrides: `key=value` over its settings.
        teacher: A model's name or a server's address; by default the run's teacher.
        top_k: Tokens whose log-probabilities are kept at each position.
        out: The file, which is replaced once the new one is whole.
        texts: `references`, or texts that the teacher writes now, one for each prompt.
        split: Whose prompts.
        prompts: How many of them, in the order in which the run will have them; None is all.

    Raises: SettingError; ModelError; DataError; TeacherError if a server fails for a text.
    """
    if texts not in get_args(TextsOf):
        raise SettingError("texts", texts, "give references or teacher")
    if not is_teacher_file(str(out)):
        raise SettingError("out", str(out), f"name a file that ends with {FILE_ENDING}, by which a teacher is a file")
    if out.exists() and (kind := other_kind(out)):
        raise SettingError("out", str(out), f"it is {kind}; name a file")
    settings = _settings(data, overrides, teacher)
    if (more := settings.algorithm.teacher.teacher_prompt) is not None:
        remedy = (
            "a file has log-probabilities after the student's prompts; leave it out, or give the run a live teacher"
        )
        raise SettingError("teacher_prompt", more, remedy)
    name = settled("teacher", teacher, [Path()]) or settings.teacher
    if not isinstance(name, str) or not name or is_teacher_file(name):
        raise SettingError("teacher", name, "name the model, or the server, that the file is to be of")
    if texts == "teacher" and is_address(name):
        raise SettingError("texts", texts, "a served teacher writes none; name a model, or score the references")
    agent = _agent(settings, name, texts, top_k)
    number = _number(agent, split, prompts)
    asked: OutsideTeacher
    if isinstance(agent.teacher, LanguageModel):
        asked = ModuleTeacher(agent.teacher, top_k, name)
    else:
        assert agent.teacher is not None and not in_process(agent.teacher), "one model, with the student's tokens"
        asked = agent.teacher
    with checkpoint.writing(out):  # known before the teacher has worked for hours
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    console = Console(stderr=True)
    say(console, f"{number} texts of the {texts} on {agent.task.name}, the top {asked.top_k} tokens of {masked(name)}")
    found: list[tuple[Episode, KnownText]] = []
    with agent.autocast():
        for start in range(0, number, AT_ONCE):
            indices = range(start, min(start + AT_ONCE, number))
            items = [agent.task.item(split, settings.seed, index) for index in indices]
            found += _scored(asked, agent.sources.off_policy(items, indices))
            if start and start % (50 * AT_ONCE) == 0:
                say(console, f"  {len(found)} texts")
    ends = agent.teacher.end_ids if isinstance(agent.teacher, LanguageModel) else agent.student.end_ids
    contents = Contents(
        teacher=str(masked(name)),
        texts=texts,
        tokenizer=fingerprint(agent.student.tokenizer),
        end_ids=tuple(sorted(ends)),
    )
    content = to_bytes(found, contents)
    checkpoint.atomic_write(out, content)
    tokens = sum(episode.length for episode, _ in found)
    say(console, f"{out}: {tokens:,} tokens, {len(content) / 2**20:.1f} MiB")


def _settings(data: str, overrides: Sequence[str], teacher: str) -> RunConfig:
    """The settings of the run: a recipe's, a YAML file's, or those of a data file."""
    is_settings = data.endswith((".yaml", ".yml")) or data in recipe_names()
    if is_settings:
        return reading.read(data, overrides)
    values: Mapping[str, Any] = {"env": "rlgkd/Dataset-v0", "env_settings": {"data": data}, "teacher": teacher}
    if not is_address(teacher):
        values = {**values, "student": teacher}  # its tokenizer, unless another student is named
    values = {key: settled(key, value, [Path()]) for key, value in values.items()}
    return reading.check(reading.override(values, overrides))


def _agent(settings: RunConfig, teacher: str, texts: TextsOf, top_k: int) -> Distill:
    """An agent that has the texts of the run: its environment, its student's tokens, and the teacher."""
    env = make_env(settings.env, settings.env_settings, student=settings.student, seed=settings.seed)
    flat = settings.algorithm.flat()
    kept = {name: flat[name] for name in KEPT}
    return Distill(
        settings.student,
        env,
        teacher=teacher,
        device=settings.device,
        seed=settings.seed,
        alpha=1.0,
        student_fraction=0.0,
        off_policy=texts,
        teacher_top_k=top_k,
        max_failed_teacher=1.0,
        **kept,
    )


def _number(agent: Distill, split: str, prompts: int | None) -> int:
    """How many items of the split there are to be."""
    size = agent.config.sampling.train_prompts or agent.task.size(split)
    if prompts is None and size > MAX_CHECKED:
        raise SettingError("prompts", prompts, f"the split has {size:,}: say how many of them, in a run's order")
    return size if prompts is None else min(prompts, size)


def _scored(teacher: OutsideTeacher, episodes: Sequence[Episode]) -> list[tuple[Episode, KnownText]]:
    """The texts with what the teacher says of them.

    Raises: TeacherError for a text for which it fails.
    """
    answers = teacher.submit(episodes)
    errors = [error for answer in answers if (error := answer.exception()) is not None]
    teacher.resolve()
    if errors:
        why = f"it failed for {len(errors)} of {len(answers)} texts: {one_line(errors[0], 200)}"
        raise TeacherError("teacher", teacher.name, f"{why}; nothing was written") from errors[0]
    return [(episode, answer.result()) for episode, answer in zip(episodes, answers, strict=True)]
