"""What there is to write and how it is scored: prompts, tokens, a reward. The environments are views of it.

A task has no state: its items are functions of (split, seed, index), its reward a function of the finished texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.items import Shares, read_items
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.registry import reward_from
from rlgkd.envs.rewards.user_errors import describe_failure
from rlgkd.envs.text.chat_template import chat_pieces
from rlgkd.errors import DataError, RlgkdError, SettingError
from rlgkd.imports import import_object
from rlgkd.lm.loading import load_tokenizer
from rlgkd.lm.model import end_token
from rlgkd.lm.stop_strings import StopStrings
from rlgkd.ops._registry import UnknownSettingError, checked_kwargs, keywords, takes_any
from rlgkd.ops.token_masks import TokenMask
from rlgkd.types import Item, PendingScores, Score, Task

Reply = Callable[[Item, Sequence[str]], str | None]
"""(item, the turns so far, the policy's and its own by turns) -> what the environment says, or None: no more."""
AT_LIMIT = ("terminate", "truncate")
KEPT = 4096
"""Prompts whose ids are kept for when they come again: encoding one takes what a small model needs for some tokens."""
Frame = tuple[list[int], list[int]]
"""Ids before and behind a message."""
Quality = Callable[[Sequence[Item], Sequence[str]], list[dict[str, float]]]
_log = logging.getLogger(__name__)


class TextTask:
    """Prompts, tokenizer, limits and reward: implements `rlgkd.types.Task`."""

    @checked_kwargs
    def __init__(
        self,
        *,
        prompts: Any,
        reward: Any,
        tokenizer: str | PreTrainedTokenizerBase,
        max_new_tokens: int = 64,
        max_prompt_tokens: int = 256,
        chat: bool = False,
        reply: Reply | None = None,
        at_limit: str = "terminate",
        stop: str | Sequence[str] = (),
        system: str = "",
        prompt: str = "prompt",
        reference: str | None = None,
        split_shares: Shares = "auto",
        quality: Quality | None = None,
        name: str = "text",
        reward_timeout: float | None = None,
        max_failed_rewards: float = 0.1,
        mask: TokenMask | None = None,
    ) -> None:
        """Describe the task.

        Args:
            prompts: Strings, rows, a file, a folder, a data set, a function or a source of items: what
                rlgkd.envs.data.items.read_items takes, with `prompt`, `reference` and `split_shares` from here.
            reward: A function of any of `prompts`, `completions`, `references`, `items` and the items' columns by
                name, each a list over the batch, that returns a list of floats or of Scores; or of `completion` and
                its like, for one sample at a time. It may be async. `tokens` are the actions as text; a reward may
                return a list of floats, one for each of them, instead of one float. Or the name of a reward, with its
                settings, or a sum of several: see rlgkd.envs.rewards.registry.
            tokenizer: A model's name, or a loaded tokenizer.
            max_new_tokens: Length limit of all that stands behind the prompt, in tokens.
            max_prompt_tokens: Length limit of a prompt; a longer one is an error, never cut silently.
            chat: Put prompts into the tokenizer's chat template as a user's message.
            reply: What the environment answers to a turn, given the item and all turns so far; None, or no `reply`,
                ends the episode. Its tokens are no actions. Rewards may ask for `turns` as well.
            at_limit: `terminate`: a text that reaches the limit is scored as it stands. `truncate`: it is cut off there
                and not scored; rlgkd's agents leave it out of the policy term (DAPO's overlong filtering), in
                Gymnasium's terms it is `truncated`, and other libraries put the last state's value in its place.
            stop: A string, or several, that ends a turn as soon as its text contains it. The text that is scored ends
                before it; the tokens up to the one that completed it are actions. With `chat`, the end token that such
                a turn lacks is put in front of a reply, as no action.
            system: The system's message before it; it needs `chat`.
            prompt: Column or template of the prompt, for data in rows.
            reference: Column or template of the reference; None takes the column `reference` where there is one.
            split_shares: Tenths of a lone file's prompts for train, validation and test; None gives all to each.
            quality: Measures for evaluation, never seen by training.
            name: Shown in reports.
            reward_timeout: Seconds for a batch (or for a sample, of a reward of single ones), after which the reward
                has failed; None waits for ever, so give one where a reward may hang.
            max_failed_rewards: Share of failed samples above which the run stops, below it they are left out; taken
                over 200 samples or more, the one worst batch not counted. Where not one was scored, 50 are enough.
            mask: Which tokens may come next, see rlgkd.ops.token_masks; the environments tell it as `action_masks()`,
                for a policy to keep to, and take any token all the same. None allows all.

        Raises: SettingError, DataError, ModelError.
        """
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens}
        for field, value in limits.items():
            if not isinstance(value, Integral) or value < 1:
                raise SettingError(field, value, "give at least 1 token, as a whole number")
        if at_limit not in AT_LIMIT:
            raise SettingError("at_limit", at_limit, f"choose one of {', '.join(AT_LIMIT)}")
        if system and not chat:
            raise SettingError("system", system, "a system's message needs chat=True")
        self.items = read_items(prompts, prompt=prompt, reference=reference, split_shares=split_shares)
        self.quality_of, self.name = quality, name
        self.reply_of, self.at_limit, self.mask = reply, at_limit, mask
        self.grader = Grader(reward_from(reward), timeout=reward_timeout, max_failed=max_failed_rewards)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        end_token(self.tokenizer)
        stops = StopStrings(self.tokenizer, stop)
        self.stops = stops if stops.strings else None
        self.max_new_tokens, self.max_prompt_tokens, self.chat = max_new_tokens, max_prompt_tokens, chat
        self._special = {
            id_: text
            for id_, text in zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True)
            if text != self.tokenizer.unk_token or id_ == end_token(self.tokenizer)
        }
        self._messages: dict[str, list[int]] = {}
        self._told_unknown = self._told_long = False
        self._frame, self._reply_frame = self._frames(system, reply is not None) if chat else (([], []), ([], []))

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
        message = self._messages.get(item.prompt)
        if message is None:
            message = self._encode("prompt", item.key, item.prompt)
            if len(self._messages) >= KEPT:
                self._messages.clear()
            self._messages[item.prompt] = message
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
        """The text before the first stop string, without special tokens and outer white space."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return (text if self.stops is None else self.stops.text_before_stop(text)).strip()

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        """What the environment says behind the last turn; None where the episode is over.

        Raises: SettingError where `reply` raised, or returned something else.
        """
        if self.reply_of is None:
            return None
        try:
            text: Any = self.reply_of(item, turns)
        except RlgkdError:
            raise
        except Exception as error:
            remedy = (
                f"it raised {describe_failure(error, self.reply_of)}; return a text, or None where the episode is over"
            )
            raise SettingError("reply", name_of(self.reply_of), remedy) from error
        if text is not None and not isinstance(text, str):
            remedy = f"it returned {text!r:.60}; return a text, or None where the episode is over"
            raise SettingError("reply", name_of(self.reply_of), remedy)
        return text

    def encode_reply(self, text: str, *, closed: bool = True) -> list[int]:
        """The ids of a reply; with `chat`, as the user's next message behind the end of the policy's.

        Where the turn is not `closed` by the policy's own end token, that of the template stands in front.
        """
        before, after = self._reply_frame
        if closed and before[:1] == [end_token(self.tokenizer)]:
            before = before[1:]
        ids = [*before, *self._encode("reply", text[:40], text), *after]
        if len(ids) >= self.max_new_tokens and not self._told_long:
            self._told_long = True
            _log.warning(
                "reply %r has %d tokens and never fits, so the episode ends at the limit, as others may; "
                "shorten it, or raise max_new_tokens, now %d", text[:40], len(ids), self.max_new_tokens,
            )  # fmt: skip
        return ids

    def score(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> list[Score]:
        """The reward, called once for the batch."""
        return self.grader(items, completions, **self._more(completions, turns, ids))

    @property
    def is_async(self) -> bool:
        """Whether the reward is async, and no subclass scores in its own way."""
        return self.grader.is_async and type(self).score is TextTask.score

    def submit(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> PendingScores:
        """As `score`, of a reward that waits: it is begun, and goes on in a thread of its own."""
        return self.grader.submit(items, completions, **self._more(completions, turns, ids))

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        """What evaluation measures beside the reward; empty where the task has nothing."""
        if self.quality_of is None:
            return [{} for _ in items]
        return self.quality_of(items, completions)

    def _more(
        self, completions: Sequence[str], turns: Sequence[Sequence[str]], ids: Sequence[Sequence[int]]
    ) -> dict[str, Sequence[Any]]:
        """What a reward may ask for beside items and completions."""
        more: dict[str, Sequence[Any]] = {"turns": turns or [[text] for text in completions]}
        if ids and self.grader.asks_for("tokens"):
            more["tokens"] = [[str(self.tokenizer.decode([token])) for token in row] for row in ids]
        return more

    def _frames(self, system: str, replies: bool) -> tuple[Frame, Frame]:
        """What stands around the user's first message, and around one behind an answer of the policy's."""
        roles = ("system", "user") if system else ("user",)
        *first, before, after = chat_pieces(self.tokenizer, *roles)
        if system:
            before = [*first[0], *self._encode("system", "system", system), *before]
        if not replies:
            return (before, after), ([], [])
        *_, between, behind = chat_pieces(self.tokenizer, "user", "assistant", "user")
        return (before, after), (between, behind)

    def _encode(self, field: str, key: str, text: str) -> list[int]:
        """The ids of a user's text; what looks like a special token in it stays ordinary text.

        Raises: DataError where the tokenizer has no other way to write it than by the special token.
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
    """A task as given, from its maker, the maker's import path `package.module:function`, or TextTask's settings.

    Raises: SettingError for a maker that raises, makes no task, or does not take a setting; what the task raises.
    """
    path = task if isinstance(task, str) else ""
    if isinstance(task, str):
        if ":" not in task:
            raise SettingError("task", task, "give package.module:function, or a registered id to gym.make")
        task = cast(Callable[..., Task], import_object("task", task))
    if callable(task):
        return _made(task, path, settings)
    if task is not None:
        if settings:
            raise SettingError("task", sorted(settings), "a ready task takes no further settings")
        return task
    return TextTask(**settings)


def _made(maker: Callable[..., Task], path: str, settings: dict[str, Any]) -> Task:
    name, known = name_of(maker), keywords(maker)
    unknown = next((setting for setting in settings if setting not in known), None)
    if unknown is not None and not takes_any(maker):
        raise UnknownSettingError(unknown, settings[unknown], name, known)
    try:
        task = maker(**settings)
    except UnknownSettingError as error:  # passed on to TextTask: the maker's own may have been meant
        raise UnknownSettingError(error.field, settings.get(error.field), name, known | error.known) from error
    except RlgkdError:
        raise
    except Exception as error:
        raise SettingError(
            "task", path or name, f"it raised {describe_failure(error, maker)}; mend it there"
        ) from error
    if not isinstance(task, Task):
        raise SettingError("task", path or name, f"it returned {task!r:.60} and no task; return a TextTask")
    return task


def name_of(function: object) -> str:
    """A function's name; an object's that is called, the name of its type."""
    return getattr(function, "__name__", type(function).__name__)
