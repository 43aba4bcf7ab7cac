"""Checks before training that what an update will need of each item is there, rather than hours later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rlgkd.errors import DataError, TooLongError, in_one_message
from rlgkd.lm.mixture import Scorer
from rlgkd.teachers import ModelTeacher, RoutedTeachers
from rlgkd.types import SIBLING, Item, Task

MAX_CHECKED = 200_000
"""Items that are all checked before training; of more, only the first is."""


def check_reference(item: Item) -> None:
    """Raise DataError if the item has none."""
    if not item.reference:
        raise DataError("reference", item.key, "it has none; give references or set student_fraction to 1")


def check_references(task: Task, split: str, seed: int) -> None:
    """Check before training that every item has a reference that can be encoded.

    Raises: DataError that counts the items that have none, and names the first ones.
    """

    def check(item: Item) -> None:
        check_reference(item)
        task.encode_completion(item.reference)

    _check_items(task, split, seed, check)


def check_teacher_prompts(teacher: ModelTeacher, task: Task, split: str, seed: int) -> None:
    """Check before training that every item has a teacher, and that one which sees more can read its prompt for it.

    A text of the group, which is not there yet, is taken to be as long as texts may be.

    Raises: DataError for unknown teachers, columns that are missing or null, and prompts that are too long; it counts
    them, and names the first ones.
    """
    if not isinstance(teacher, RoutedTeachers) and (teacher.format is None or not teacher.format.template):
        return

    def check(item: Item) -> None:
        reader = teacher.of(item) if isinstance(teacher, RoutedTeachers) else teacher
        _check_teacher_prompt(reader, item, task.max_new_tokens)

    _check_items(task, split, seed, check)


def _check_items(task: Task, split: str, seed: int, check: Callable[[Item], None]) -> None:
    """Check every item; of items without end, and of more than `MAX_CHECKED`, the first of the stream.

    Raises: DataError for all that `check` has raised.
    """
    size = task.size(split)
    number = size if size <= MAX_CHECKED else 1
    found: list[tuple[str, DataError]] = []
    for index in range(number):
        item = task.item(split, seed, index)
        try:
            check(item)
        except DataError as error:
            found.append((item.key, error))
    if found:
        raise in_one_message(found, number)


def _check_teacher_prompt(reader: Scorer, item: Item, max_new_tokens: int) -> None:
    """Raise DataError if a teacher that sees more cannot read its prompt for the item."""
    form = reader.format
    if form is None or not form.template:
        return
    room = reader.context - max_new_tokens * (2 if form.reads_sibling else 1)
    if form.reads_sibling:
        item = dataclasses.replace(item, columns={**item.columns, SIBLING: ""})
    length = len(form.encode_prompt(item))
    if length > room:
        remedy = f"it has {length} tokens for {item.key}, and the teacher's context has room for {room}"
        raise TooLongError("teacher_prompt", form.template, f"{remedy}; shorten it or lower max_new_tokens")
