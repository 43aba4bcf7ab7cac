"""rlgkd/DocstringSummary-v0: the first line of a docstring, generated from the rest of it. Real text with no download.

The items are the public functions, classes and methods of the standard library and of installed packages. Left out:
parameter tables, examples, notes and whatever else follows the prose.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.sources import ListItems
from rlgkd.envs.rewards import rouge
from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.docstring_corpus import SPLITS, STANDARD_LIBRARY, Docstring, docstrings
from rlgkd.envs.tasks.docstring_parser import words_of
from rlgkd.envs.text.chat_template import ChatTemplate
from rlgkd.envs.text.encoder import TextEncoder
from rlgkd.errors import DataError
from rlgkd.lm.loading import load_tokenizer
from rlgkd.settings import checked_arguments
from rlgkd.types import Item

PACKAGES = (
    STANDARD_LIBRARY, "accelerate", "click", "fsspec", "gymnasium", "huggingface_hub", "jinja2", "joblib", "matplotlib",
    "mpmath", "networkx", "nltk", "numpy", "packaging", "pandas", "PIL", "pydantic", "requests", "rich", "sacrebleu",
    "scipy", "setuptools", "stable_baselines3", "sympy", "tensorboard", "torch", "tqdm", "transformers", "typer",
    "urllib3", "werkzeug",
)  # fmt: skip
"""The standard library and what rlgkd depends on, directly or not; packages that are not installed are skipped."""
MAX_PROMPT_TOKENS = 112
MAX_NEW_TOKENS = 32
_log = logging.getLogger(__name__)


class DocstringItems(ListItems):
    """The items whose prompt and reference keep to the task's limits.

    A hash of the keys orders them, so that any first part of validation or test is a fair sample.
    """

    dropped: dict[str, int]
    """How many items were over the limits, by split."""

    def __init__(
        self,
        packages: Sequence[str],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        """Read the packages and keep what fits.

        Raises: DataError if a split is empty.
        """
        splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
        self.dropped = dict.fromkeys(SPLITS, 0)
        encoder = TextEncoder(tokenizer, ChatTemplate(tokenizer))
        for docstring in sorted(docstrings(tuple(packages)), key=lambda d: (crc32(d.key.encode()), d.key)):
            item = item_of(docstring)
            prompt = encoder.prompt(item.key, item.prompt)
            reference = encoder.completion(item.reference)
            if len(prompt) <= max_prompt_tokens and len(reference) <= max_new_tokens:
                splits[docstring.split].append(item)
            else:
                self.dropped[docstring.split] += 1
        empty = [split for split, items in splits.items() if not items]
        if empty:
            raise DataError(
                "packages",
                list(packages),
                f"no docstring in them fits {' and '.join(empty)}; name installed packages with their sources, "
                f"or raise max_prompt_tokens, now {max_prompt_tokens}, or max_new_tokens, now {max_new_tokens}",
            )
        counts = {split: len(items) for split, items in splits.items()}
        _log.info("docstrings: kept %s; over the token limits, dropped: %s", counts, self.dropped)
        super().__init__(splits)


@checked_arguments
def docstring_summary(
    *,
    tokenizer: str | PreTrainedTokenizerBase = "smollm2-135m",
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    packages: Sequence[str] = PACKAGES,
) -> TextTask:
    """The first line of a docstring of the installed Python libraries, from its body; the reward is ROUGE.

    Prompt: The name of a function, class or method, and the docstring's prose without its first line, as a user's
    message in the tokenizer's chat template.

    Reward: ROUGE-L (F1) against the first line, in [0, 1].

    Episode end: The end token; at the length limit, the text is scored as it stands.

    Splits: The hash of a file's module path decides the split of all its docstrings, 8, 1 and 1 tenths.

    Args:
        tokenizer: A model's name or a loaded tokenizer; it must have a chat template.
        max_new_tokens: Length limit of a completion; an item whose reference is longer is dropped.
        max_prompt_tokens: Length limit of a prompt, template included; an item with a longer one is dropped.
        packages: Importable top-level names, and `stdlib`.

    Raises: DataError if a split is empty; SettingError without a chat template; DependencyError if rouge-score or the
        package of `smollm2-135m` is not installed.
    """
    reward = rouge("rougeL")
    opened = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return TextTask(
        name="DocstringSummary",
        prompts=DocstringItems(
            packages, tokenizer=opened, max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens
        ),
        reward=reward,
        tokenizer=opened,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        chat=True,
        quality=quality,
    )


def item_of(docstring: Docstring) -> Item:
    """Return the item of a docstring; its prompt has the name, since a body often does not say what it describes."""
    return Item(
        key=docstring.key,
        prompt=f"Summarize `{docstring.name}` in one line:\n{docstring.body}",
        reference=docstring.summary,
        columns={"body": docstring.body, "module": docstring.module},
    )


def quality(items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
    """Each in [0, 1]: `rouge2`; `copied`, the share of the completion's word pairs that are in the body; `sentence`.

    `sentence` is 1 for a single line that ends in a period.
    """
    overlaps = rouge("rouge2")(completions, [item.reference for item in items])
    measures = []
    for item, completion, overlap in zip(items, completions, overlaps, strict=True):
        pairs = _word_pairs(completion)
        body_pairs = set(_word_pairs(str(item.columns["body"])))
        measures.append(
            {
                "rouge2": overlap,
                "copied": sum(pair in body_pairs for pair in pairs) / max(len(pairs), 1),
                "sentence": float("\n" not in completion and completion.endswith(".")),
            }
        )
    return measures


def _word_pairs(text: str) -> list[tuple[str, str]]:
    return list(pairwise(words_of(text)))
