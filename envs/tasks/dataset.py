"""rlgkd/Dataset-v0: a user's own data, by settings alone."""

from __future__ import annotations

from typing import Any

from rlgkd.envs.task import TextTask

EXAMPLE = [
    {"prompt": f"Question: What is {a} + {b}?\nAnswer:", "reference": str(a + b)}
    for a, b in ((1, 1), (2, 3), (4, 5), (7, 2))
]
"""Used until data is given, so that the environment can be made, looked at and checked as it is."""


def dataset(
    *,
    data: Any = EXAMPLE,
    reward: Any = "exact",
    tokenizer: Any = "embedded:grounded-teacher",
    name: str = "",
    **settings: Any,
) -> TextTask:
    """Your own data, from a file, a folder or a list, with a reward by name (see rlgkd.envs.data.items.read_items).

    Prompt: The column `prompt`, or a template with the data's columns: a text, or with `chat` a conversation. Every
    prompt is encoded once at the start, so that all that are too long are reported then, and not during training.

    Reward: An exact match with the reference, in {0, 1}, or the one that `reward` names.

    Episode end: The end token or a stop string; at the length limit, the text is scored as it stands.

    Splits: Those of the data. A lone file is divided by the hash of the prompt, 8, 1 and 1 tenths.

    Args:
        data: A file, a folder, a list, a data set, a function of `rng`, an import path of one of these, or a data set
            of the Hugging Face hub, `owner/name`.
        reward: A reward's name, with settings or as a sum, an import path, or a function.
        tokenizer: The student's, as `rlgkd train` sets it; the default is a stand-in, like the example data.
        name: Shown in reports; by default the path of the data.
        **settings: Those of `TextTask`.

    Raises: SettingError, DataError, ModelError, DependencyError.
    """
    if not name:
        name = "example" if data is EXAMPLE else data if isinstance(data, str) else "Dataset"
    return TextTask(prompts=data, reward=reward, tokenizer=tokenizer, name=name, **settings)
