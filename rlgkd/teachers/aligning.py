"""Opens a teacher with another tokenizer: checks that the two tokenizers can be aligned, and says how well."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.text_format import special_tokens
from rlgkd.lm.token_bytes import pieces_of, plain_ids, token_bytes
from rlgkd.lm.vocabulary import same_vocabulary
from rlgkd.teachers.aligned import AlignedTeacher
from rlgkd.teachers.map_file import make_map, read_map, with_ends
from rlgkd.types import Item, PromptFormat, Task

PROBES = 512
"""Tokens of the student's whose text the teacher's tokenizer should give back."""
LEAST_GIVEN_BACK = 0.9
_log = logging.getLogger(__name__)


def align_teacher(
    task: Task, teacher: LanguageModel, student: LanguageModel, *, name: str, mapped: bool, map_file: str | None = None
) -> AlignedTeacher:
    """Align a teacher's tokens with its student's.

    Args:
        task: What both models see.
        teacher: A frozen model with its whole vocabulary.
        student: Whose end tokens are known to the task.
        name: The teacher's, for messages.
        mapped: Whether its distributions go through a map of the vocabularies; else the written tokens alone are seen.
        map_file: The map, as `rlgkd align` wrote it; None makes it now.

    Raises:
        ModelError: Tokenizers that cannot be aligned, or a teacher without a chat template for a task that has one.
        DataError: A map's file that is damaged or of other tokenizers.
    """
    ours, theirs = token_bytes(student.tokenizer, field="student"), token_bytes(teacher.tokenizer, name=name)
    our_special, their_special = special_tokens(student.tokenizer), special_tokens(teacher.tokenizer)
    _check_given_back(teacher.tokenizer, theirs, [text for n, text in enumerate(ours) if n not in our_special], name)
    form = _format(task, teacher, student, name)
    by_name = {text: id_ for id_, text in their_special.items()}
    special = {id_: by_name[text] for id_, text in our_special.items() if text in by_name}
    own_end = teacher.end if form is None else form.own_end
    ends = {id_: special[id_] if special.get(id_) in teacher.end_ids else own_end for id_ in _end_ids(task, student)}
    map = None
    if mapped and map_file is not None:
        map = read_map(map_file, student.tokenizer, teacher.tokenizer)
    elif mapped:
        map, coverage = make_map(student.tokenizer, teacher.tokenizer, name=name)
        _log.warning("teacher_tokens: map: %s", coverage)
    return AlignedTeacher(
        name=name,
        lm=teacher,
        form=form,
        same_tokens=same_vocabulary(student.tokenizer, teacher.tokenizer),
        student_texts=ours,
        teacher_texts=theirs,
        ends=ends,
        special=special,
        map=None if map is None else with_ends(map, ends).to(student.device),
    )


def _end_ids(task: Task, student: LanguageModel) -> frozenset[int]:
    return frozenset(getattr(task, "end_ids", student.end_ids))


def _format(task: Task, teacher: LanguageModel, student: LanguageModel, name: str) -> PromptFormat | None:
    """How the teacher reads prompts; None if in the student's tokens and as the student does."""
    same = same_vocabulary(task.tokenizer, teacher.tokenizer)
    if hasattr(task, "format_of"):
        try:
            form: PromptFormat | None = task.format_of(teacher.tokenizer, teacher.end_ids)
        except SettingError as error:
            raise ModelError("teacher", name, f"in its own format, {error.remedy}") from error
        if form is not None or same:
            return form
        raise ModelError("teacher", name, "the environment has no way to write its prompts in other tokens")
    if same:
        return None

    def encode_reply(text: str, closed: bool) -> list[int]:
        return plain_ids(teacher.tokenizer, text)

    def encode_prompt(item: Item) -> list[int]:
        return plain_ids(teacher.tokenizer, item.prompt)

    return PromptFormat(
        encode_prompt=encode_prompt,
        encode_reply=encode_reply,
        end=student.end,
        own_end=teacher.end,
        example="...",
        own_example="...",
        longer=0,
        replies=True,
    )


def _check_given_back(tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes], ours: list[bytes], name: str) -> None:
    """Refuse a tokenizer that changes texts, as one does that folds letters or does not know some."""
    chosen = [ours[n] for n in np.linspace(0, len(ours) - 1, min(PROBES, len(ours)), dtype=np.int64)]
    probes = [text.decode(errors="replace") for text in chosen if text]
    changed = [probe for probe in probes if pieces_of(tokenizer, texts, probe) is None]
    if len(changed) > (1 - LEAST_GIVEN_BACK) * len(probes):
        written = b"".join(texts[id_] for id_ in plain_ids(tokenizer, changed[0])).decode(errors="replace")
        remedy = (
            f"its tokenizer writes {len(changed)} of {len(probes)} of the student's tokens otherwise ({changed[0]!r} "
            f"becomes {written!r}), so its tokens cannot be aligned with the student's; give another teacher"
        )
        raise ModelError("teacher", name, remedy)
