"""What there is to write and how it is scored: prompts, tokens, a reward. The environments are views of it.

A task has no state: its items are functions of (split, seed, index), its reward a function of the finished texts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlgkd.envs.calling import Grader
from rlgkd.envs.data import Shares, read_items
from rlgkd.envs.naming import import_object, reward_from
from rlgkd.errors import DataError, SettingError
from rlgkd.lm.loading import load_tokenizer
from rlgkd.lm.model import end_token
from rlgkd.types import Item, Score, Task

Quality = Callable[[Sequence[Item], Sequence[str]], list[dict[str, float]]]
_log = logging.getLogger(__name__)


class TextTask:
    """Prompts, tokenizer, limits and reward: implements `rlgkd.types.Task`."""

    def __init__(
        self,
        *,
        prompts: Any,
        reward: Any,
        tokenizer: str | PreTrainedTokenizerBase,
        max_new_tokens: int = 64,
        max_prompt_tokens: int = 256,
        chat: bool = False,
        system: str = "",
        prompt: str = "prompt",
        reference: str | None = None,
        split_shares: Shares = "auto",
        quality: Quality | None = None,
        name: str = "text",
        reward_timeout: float | None = None,
        max_failed_rewards: float = 0.1,
    ) -> None:
        """Describe the task.

        Args:
            prompts: Strings, rows, a file, a folder, a data set, a function or a source of items: what
                rlgkd.envs.data.read_items takes, with `prompt`, `reference` and `split_shares` from here.
            reward: A function of any of `prompts`, `completions`, `references`, `items` and the items' columns by
                name, each a list over the batch, that returns a list of floats or of Scores; or of `completion` and
                its like, for one sample at a time. It may be async. Or the name of one, with its settings, or a sum
                of several: see rlgkd.envs.naming, and rlgkd.envs.rewards for those there are.
            tokenizer: A model's name, or a loaded tokenizer.
            max_new_tokens: Length limit of a completion, in tokens; a text that reaches it is scored as it stands.
            max_prompt_tokens: Length limit of a prompt; a longer one is an error, never cut silently.
            chat: Put prompts into the tokenizer's chat template as a user's message.
            system: The system's message before it.
            prompt: Column or template of the prompt, for data in rows.
            reference: Column or template of the reference; None takes the column `reference` where there is one.
            split_shares: Tenths of a lone file's prompts for train, validation and test; None gives all to each.
            quality: Measures for evaluation, never seen by training.
            name: Shown in reports.
            reward_timeout: Seconds for a batch, after which the reward has failed; None waits.
            max_failed_rewards: Share of failed samples at which the run stops; below it they are left out.

        Raises: SettingError, DataError, ModelError.
        """
        for field, value in (("max_new_tokens", max_new_tokens), ("max_prompt_tokens", max_prompt_tokens)):
            if value < 1:
                raise SettingError(field, value, "give at least 1 token")
        if system and not chat:
            raise SettingError("system", system, "a system's message needs chat=True")
        self.items = read_items(prompts, prompt=prompt, reference=reference, split_shares=split_shares)
        self.quality_of, self.name = quality, name
        self.grader = Grader(reward_from(reward), timeout=reward_timeout, max_failed=max_failed_rewards)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        end_token(self.tokenizer)
        self.max_new_tokens, self.max_prompt_tokens, self.chat = max_new_tokens, max_prompt_tokens, chat
        self._special = {
            id_: text
            for id_, text in zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True)
            if text != self.tokenizer.unk_token or id_ == end_token(self.tokenizer)
        }
        self._told_unknown = False
        before, between, after = _chat_frame(self.tokenizer, bool(system)) if chat else ([], [], [])
        self._frame = ([*before, *self._encode("system", "system", system), *between], after)

    def size(self, split: str) -> int:
        """How many distinct items the split has."""
        return self.items.size(split)

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at `index` of the stream that `seed` orders."""
        return self.items.item(split, seed, index)

    def encode_prompt(self, item: Item) -> list[int]:
        """Token ids of the prompt.

        Raises: DataError if it is empty, longer than `max_prompt_tokens`, or would hold a special token.
        """
        message = self._encode("prompt", item.key, item.prompt)
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
        return [*self._encode("completion", text[:40], text if self.chat else f" {text}"), end_token(self.tokenizer)]

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

    def _encode(self, field: str, key: str, text: str) -> list[int]:
        """The ids of a user's text; what looks like a special token in it stays ordinary text.

        Raises: DataError where the tokenizer has no other way to write it than by the special token (T5's does not).
        """
        ids = cast(list[int], self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for id_ in self._special.keys() & set(ids):
            raise DataError(
                field, key, f"this tokenizer makes its special token {self._special[id_]!r} of it; reword it"
            )
        if self.tokenizer.unk_token_id in ids and not self._told_unknown:
            self._told_unknown = True
            _log.warning("%s %r holds characters that the tokenizer does not know, as others may", field, key)
        return ids


def build_task(task: Task | Callable[..., Task] | str | None, **settings: Any) -> Task:
    """A task as given, from its maker, the maker's import path `package.module:function`, or TextTask's settings."""
    if isinstance(task, str):
        if ":" not in task:
            raise SettingError("task", task, "give package.module:function, or a registered id to gym.make")
        task = cast(Callable[..., Task], import_object("task", task))
    if callable(task):
        return task(**settings)
    if task is not None:
        if settings:
            raise SettingError("task", sorted(settings), "a ready task takes no further settings")
        return task
    return TextTask(**settings)


def _chat_frame(tokenizer: PreTrainedTokenizerBase, system: bool) -> tuple[list[int], list[int], list[int]]:
    """What the chat template puts before, between and after a system's and a user's message, as ids.

    Special tokens are among them. Without a system's message there is nothing between.

    Raises: SettingError if there is no template, or one that does not hold each message once as it is.
    """
    if tokenizer.chat_template is None:
        raise SettingError("chat", True, "this tokenizer has no chat template; set chat to false")
    marks = {role: f"\u2063{role}\u2063" for role in (("system", "user") if system else ("user",))}
    messages = [{"role": role, "content": mark} for role, mark in marks.items()]
    try:
        text = str(cast(Any, tokenizer).apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise SettingError("system" if system else "chat", True, f"this chat template refuses it: {error}") from error
    for role, mark in marks.items():
        if text.count(mark) != 1:
            field, remedy = ("system", "leave it out") if role == "system" else ("chat", "set chat to false")
            raise SettingError(field, True, f"this chat template rewrites the message of the {role}; {remedy}")
    before, *between, after = re.split("|".join(marks.values()), text)
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, "".join(between), after)]
    return cast(tuple[list[int], list[int], list[int]], tuple(ids))
