"""rlgkd/Dataset-v0: a user's file, by settings alone."""

from __future__ import annotations

from typing import Any

from rlgkd.envs.data.sources import ListItems
from rlgkd.envs.task import TextTask

EXAMPLE = [
    {"prompt": f"Question: What is {a} + {b}?\nAnswer:", "reference": str(a + b)}
    for a, b in ((1, 1), (2, 3), (4, 5), (7, 2))
]
"""Stands in until data is given, so that the id can be made, looked at and checked as it is."""


def dataset(
    *, data: Any = EXAMPLE, reward: Any = "exact", tokenizer: Any = "embedded:grounded-teacher", name: str = "",
    **settings: Any,
) -> TextTask:  # fmt: skip
    """Your own data, from a file, a folder or a list, with a reward by name (see rlgkd.envs.data.items.read_items).

    The tokenizer should be the student's, as it is by `rlgkd train`; the one here stands in, like the example.

    Every prompt is encoded once before anything else, so that one too long is told at the start and not in the midst.

    Raises: SettingError, DataError, ModelError, DependencyError.
    """
    named = name or ("example" if data is EXAMPLE else data if isinstance(data, str) else "Dataset")
    task = TextTask(prompts=data, reward=reward, tokenizer=tokenizer, name=named, **settings)
    if isinstance(task.items, ListItems):
        for item in task.items.all():
            task.encode_prompt(item)
    return task
