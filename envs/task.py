"""What there is to write and how it is scored: prompts, tokens, a reward. The environments are views of it.

A task has no state: its items are functions of (split, seed, index), its reward a function of the finished texts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlgkd.envs.calling import Grader, Reward
from rlgkd.errors import DataError, SettingError
from rlgkd.lm.loading import load_tokenizer
from rlgkd.lm.model import end_token
from rlgkd.ops.masks import TokenMask
from rlgkd.types import Item, Score, Task

Quality = Callable[[Sequence[Item], Sequence[str]], list[dict[str, float]]]


@runtime_checkable
class Items(Protocol):
    """Where prompts come from."""

    def size(self, split: str) -> int:
        """How many distinct items the split has."""
        ...

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at `index` of the stream that `seed` orders; defined for every index >= 0."""
        ...


class ListItems:
    """Items in memory. A seed orders them anew for each pass; validation and test keep the order they were given in."""

    def __init__(self, splits: Mapping[str, Sequence[Item]]) -> None:
        """Hold the items of each split.

        Raises: DataError if a split is empty.
        """
        for split, items in splits.items():
            if not items:
                raise DataError("prompts", f"{split}: 0 items", "give at least one prompt")
        self._splits = {split: tuple(items) for split, items in splits.items()}

    def size(self, split: str) -> int:
        """Number of items in the split."""
        return len(self._of(split))

    def item(self, split: str, seed: int, index: int) -> Item:
        """Pass index // size is a permutation of its own; validation and test are not shuffled."""
        items = self._of(split)
        pass_, place = divmod(index, len(items))
        return items[_permutation(len(items), seed, pass_)[place] if split == "train" else place]

    def _of(self, split: str) -> tuple[Item, ...]:
        if split not in self._splits:
            raise DataError("split", split, f"choose one of {', '.join(self._splits)}")
        return self._splits[split]


class TextTask:
    """Prompts, tokenizer, limits and reward: implements `rlgkd.types.Task`."""

    def __init__(
        self,
        *,
        prompts: Items | Sequence[str],
        reward: Reward,
        tokenizer: str | PreTrainedTokenizerBase,
        max_new_tokens: int = 64,
        max_prompt_tokens: int = 256,
        chat: bool = False,
        quality: Quality | None = None,
        name: str = "text",
        reward_timeout: float | None = None,
        max_failed_rewards: float = 0.1,
        mask: TokenMask | None = None,
    ) -> None:
        """Describe the task.

        Args:
            prompts: Strings, or a source of items.
            reward: A function of any of `prompts`, `completions`, `references`, `items` and the items' columns by
                name, each a list over the batch, that returns a list of floats or of Scores; or of `completion` and
                its like, for one sample at a time. It may be async. See rlgkd.envs.rewards for some.
            tokenizer: A model's name, or a loaded tokenizer.
            max_new_tokens: Length limit of a completion, in tokens; a text that reaches it is scored as it stands.
            max_prompt_tokens: Length limit of a prompt; a longer one is an error, never cut silently.
            chat: Put prompts into the tokenizer's chat template as a user's message.
            quality: Measures for evaluation, never seen by training.
            name: Shown in reports.
            reward_timeout: Seconds for a batch, after which the reward has failed; None waits.
            max_failed_rewards: Share of failed samples at which the run stops; below it they are left out.
            mask: Which tokens may come next, see rlgkd.ops.masks; the environments tell it as `action_masks()`, for
                a policy to keep to, and take any token all the same. None allows all.

        Raises: SettingError, DataError, ModelError.
        """
        for field, value in (("max_new_tokens", max_new_tokens), ("max_prompt_tokens", max_prompt_tokens)):
            if value < 1:
                raise SettingError(field, value, "give at least 1 token")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence | Items):
            raise DataError("prompts", prompts, "give a list of strings, or a source of items")
        if isinstance(prompts, Sequence):
            listed = [Item(key=str(n), prompt=text) for n, text in enumerate(prompts)]
            prompts = ListItems(dict.fromkeys(("train", "validation", "test"), listed))
        self.items, self.quality_of, self.name, self.mask = prompts, quality, name, mask
        self.grader = Grader(reward, timeout=reward_timeout, max_failed=max_failed_rewards)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        end_token(self.tokenizer)
        self.max_new_tokens, self.max_prompt_tokens, self.chat = max_new_tokens, max_prompt_tokens, chat
        self._frame = _chat_frame(self.tokenizer) if chat else ([], [])

    def size(self, split: str) -> int:
        """How many distinct items the split has."""
        return self.items.size(split)

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at `index` of the stream that `seed` orders."""
        return self.items.item(split, seed, index)

    def encode_prompt(self, item: Item) -> list[int]:
        """Token ids of the prompt.

        Raises: DataError if it is empty or longer than `max_prompt_tokens`.
        """
        message = self._encode(item.prompt)
        if not message:
            raise DataError("prompt", item.key, "it is empty; give a prompt of at least one token")
        before, after = self._frame
        ids = [*before, *message, *after]
        if len(ids) > self.max_prompt_tokens:
            remedy = f"it has {len(ids)} tokens; shorten it or raise max_prompt_tokens, now {self.max_prompt_tokens}"
            raise DataError("prompt", item.key, remedy)
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a completion, end token included; behind a plain prompt it begins with the space that parts words."""
        return [*self._encode(text if self.chat else f" {text}"), end_token(self.tokenizer)]

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text, without special tokens and outer white space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def score(self, items: Sequence[Item], completions: Sequence[str]) -> list[Score]:
        """The reward, called once for the batch."""
        return self.grader(items, completions)

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        """What evaluation measures beside the reward; empty where the task has nothing."""
        if self.quality_of is None:
            return [{} for _ in items]
        return self.quality_of(items, completions)

    def _encode(self, text: str) -> list[int]:
        """The ids of a user's text; what looks like a special token in it stays ordinary text."""
        return cast(list[int], self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def build_task(task: Task | str | None, **settings: Any) -> Task:
    """A task as given, from the import path `package.module:function` of its maker, or from `TextTask`'s settings."""
    if isinstance(task, str):
        module, colon, function = task.partition(":")
        if not colon:
            raise SettingError("task", task, "give package.module:function, or a registered id to gym.make")
        return cast(Task, getattr(importlib.import_module(module), function)(**settings))
    if task is not None:
        if settings:
            raise SettingError("task", sorted(settings), "a ready task takes no further settings")
        return task
    return TextTask(**settings)


@lru_cache(maxsize=128)  # a vector environment's rows each have a seed of their own
def _permutation(size: int, seed: int, pass_: int) -> np.ndarray:
    return np.random.default_rng([seed, pass_]).permutation(size)


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the chat template puts before and after a user's message, as ids, its special tokens among them.

    Raises: SettingError if there is no template, or one that does not hold the message once as it is.
    """
    if tokenizer.chat_template is None:
        raise SettingError("chat", True, "this tokenizer has no chat template; set chat to false")
    mark = "\u2063message\u2063"
    messages = [{"role": "user", "content": mark}]
    text = str(cast(Any, tokenizer).apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if text.count(mark) != 1:
        raise SettingError("chat", True, "this chat template rewrites the message; set chat to false")
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(mark))
    return cast(list[int], before), cast(list[int], after)
