"""A text task: prompts, tokenizer, limits and reward. The environments are views of it.

A task has no state: its items are functions of (split, seed, index), its reward a function of the finished texts.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from numbers import Integral
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.data.hints import hinted_by
from rlgkd.envs.data.items import Shares, read_items
from rlgkd.envs.data.sources import ListItems
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.registry import Quality, quality_from, reward_from
from rlgkd.envs.rewards.returned import measures_of
from rlgkd.envs.rewards.user_errors import callable_name, callable_names
from rlgkd.envs.text.chat_template import read_template
from rlgkd.envs.text.encoder import TextEncoder
from rlgkd.envs.text.teacher_format import teacher_format
from rlgkd.envs.tools import Tools, tool_counts
from rlgkd.envs.user_calls import call_user
from rlgkd.errors import DataError, SettingError, TooLongError
from rlgkd.global_state import restored_state
from rlgkd.imports import import_object
from rlgkd.lm.loading import load_tokenizer
from rlgkd.lm.stop_strings import StopStrings
from rlgkd.lm.text_format import end_token
from rlgkd.ops._registry import checked_kwargs
from rlgkd.ops.token_masks import TokenMask
from rlgkd.settings import checked_arguments
from rlgkd.types import Item, PendingScores, PromptFormat, Score

Reply = Callable[[Item, Sequence[str]], str | None]
"""(item, the turns so far, the policy's and the environment's in alternation) -> the environment's next turn, or None
at the end of the episode."""
AT_LIMIT = ("terminate", "truncate")
MAX_TOKENS = 2**24
"""The longest limit of a text: more than any model's context, and rows of this length can still be made."""
CHARACTERS_PER_TOKEN = 1000
"""No text has tokens so long on the average: a prompt that would need them is too long before it is encoded."""
_log = logging.getLogger(__name__)


class TextTask:
    """Prompts, tokenizer, limits and reward: implements `rlgkd.types.Task`."""

    @checked_kwargs
    @checked_arguments
    def __init__(
        self,
        *,
        prompts: Any,
        reward: Any,
        tokenizer: str | PreTrainedTokenizerBase,
        max_new_tokens: int = 64,
        max_prompt_tokens: int = 256,
        chat: bool = False,
        chat_template: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        chat_template_date: str | date = "",
        reply: Reply | str | None = None,
        at_limit: str = "terminate",
        stop: str | Sequence[str] = (),
        end_tokens: str | Sequence[str] = (),
        skip_special_tokens: bool = True,
        system: str = "",
        prompt: str = "prompt",
        reference: str | None = None,
        split_shares: Shares = "auto",
        shares: Mapping[str, int] | None = None,
        subset: str = "",
        max_rows: int | None = None,
        unusable_rows: str = "refuse",
        tools: Sequence[Callable[..., Any] | str] = (),
        quality: Quality | str | Mapping[str, Any] | None = None,
        name: str = "text",
        reward_timeout: float | None = None,
        max_failed_rewards: float = 0.1,
        mask: TokenMask | None = None,
    ) -> None:
        """Describe the task.

        Args:
            prompts: Strings, conversations, rows, a file, a folder, a data set, a function or a source of items: what
                rlgkd.envs.data.items.read_items takes, with the settings of data from here. A conversation is a list
                of {role, content}: a system's message, examples, earlier turns. It needs `chat`, and the turns of the
                assistant in it are no actions.
            reward: A function of any of `prompts`, `completions`, `references`, `items` and the items' columns by
                name, each a list over the batch, that returns a list of floats or of Scores; or of `completion` and
                its like, for one sample at a time. It may be async. `tokens` are the actions as text; a reward may
                return a list of floats, one for each of them, instead of one float. Or the name of a reward, with its
                settings, or a sum of several: see rlgkd.envs.rewards.registry.
            tokenizer: A model's name, or a loaded tokenizer.
            max_new_tokens: Length limit of everything after the prompt, in tokens.
            max_prompt_tokens: Length limit of a prompt; a longer one is an error, never cut silently.
            chat: Put prompts into the tokenizer's chat template as a user's message.
            chat_template: Name of the chat template, of a tokenizer that has several; by default the one called
                `default`, or with tools `tool_use` if there is one.
            chat_template_kwargs: Variables of the chat template, such as `{enable_thinking: false}`.
            chat_template_date: The day that a chat template shows if it shows one, as YYYY-MM-DD; by default the day on
                which the task is made. `rlgkd train` writes it into a run's settings.
            reply: What the environment answers to a turn, given the item and all turns so far, or the import path of
                that function; None, or no `reply`, ends the episode. Its tokens are no actions. Rewards may ask for
                `turns` as well.
            at_limit: `terminate`: a text that reaches the limit is scored as it stands. `truncate`: it is cut off there
                and not scored; rlgkd's agents leave it out of the policy term (DAPO's overlong filtering), in
                Gymnasium's terms it is `truncated`, and other libraries put the last state's value in its place.
            stop: A string, or several, that ends a turn as soon as its text contains it. The text that is scored ends
                before it; the tokens up to the one that completed it are actions. With `chat`, the end token that such
                a turn lacks is put in front of a reply, as no action.
            end_tokens: All tokens that end a turn, as the tokenizer spells them; a completion that is given as text
                ends with the one that the chat template puts after an answer, else with the first. Empty takes those of
                the model's tokenizer, `config` and `generation_config`.
            skip_special_tokens: Leave the special tokens that the policy wrote out of the texts that rewards, replies
                and rollouts.jsonl get; the end token is left out always.
            system: The system's message before a prompt that has none of its own; it needs `chat`.
            prompt: Column or template of the prompt, for data in rows. A conversation that ends with a turn of the
                assistant has its answer with it, which is the reference if no other is given.
            reference: Column or template of the reference; None takes the column `reference` if there is one. The
                column may hold a list of right answers: the best match counts as the reward, and training on references
                takes the first.
            split_shares: Tenths of a lone file's prompts for train, validation and test; None gives all to each.
            shares: Where data is a mapping of names, how many items of each follow one another, again and again, as
                {math: 2, code: 1}; the column `source` has the name, unless the data has one. None: one kind.
            subset: Configuration of a data set of the Hugging Face hub.
            max_rows: Rows that are read of each split; None reads all. Streaming data sets need it.
            unusable_rows: `refuse`: rows that are too long, malformed, or lack a reference that is needed are named in
                one error before training. `drop`: they are left out, and their number is logged.
            tools: Typed functions that the policy may call, or their import paths (see rlgkd.envs.tools); with `chat`
                alone, and in the place of `reply`. The answer is a message of the role `tool`, no action. A failed call
                is answered with `Error: ...`. The score's parts count `tool_calls` and `tool_errors`. Schemas in a
                column `tools` of the data are what the chat template shows of a row instead.
            quality: Measures for evaluation, never seen by training: named as rewards are, alone or as a mapping of
                several; or a function of (items, completions) that returns a mapping of numbers for each.
            name: Shown in reports.
            reward_timeout: Seconds for a batch (or for a sample, if the reward takes single samples), after which the
                reward has failed. None waits for ever, so give a limit if the reward may hang.
            max_failed_rewards: Share of failed samples above which the run stops; below it they are left out. It is
                taken over 200 samples or more, without the one worst batch. If all have failed, 50 samples are enough.
            mask: Which tokens may come next, see rlgkd.ops.token_masks. The environments show it as `action_masks()`
                for a policy to respect, and still take any token. None allows all.

        Raises: SettingError, DataError, ModelError.
        """
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens}
        for field, value in limits.items():
            if not isinstance(value, Integral) or not 1 <= int(value) <= MAX_TOKENS:
                raise SettingError(field, value, f"give at least 1 token and at most {MAX_TOKENS:,}, as a whole number")
        if at_limit not in AT_LIMIT:
            raise SettingError("at_limit", at_limit, f"choose one of {', '.join(AT_LIMIT)}")
        if system and not chat:
            raise SettingError("system", system, "a system's message needs chat=True")
        if tools and not chat:
            raise SettingError("tools", callable_names(tools), "tools need a chat template: set chat to true")
        if tools and reply is not None:
            raise SettingError("reply", callable_name(reply), "tools answer the turns; give one of the two")
        self.name = name
        self.tools = Tools(tools) if tools else None
        self.grader = Grader(
            reward_from(reward),
            timeout=reward_timeout,
            max_failed=max_failed_rewards,
            parts_of_turns=tool_counts if tools else None,
        )
        self.quality_of = quality_from(quality)
        self.reply_of: Reply | None = import_object("reply", reply) if isinstance(reply, str) else reply
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.at_limit = at_limit
        self.mask = mask
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        end_token(self.tokenizer)  # checked before the stop strings, which are read with the tokenizer
        self.skip_special_tokens = skip_special_tokens
        stops = StopStrings(self.tokenizer, stop, skip_special_tokens=skip_special_tokens)
        self.stops = stops if stops.strings else None
        self.chat = chat
        self.chat_template = read_template(
            self.tokenizer,
            chat=chat,
            name=chat_template,
            variables=chat_template_kwargs or {},
            day=chat_template_date,
        )
        """How prompts are written as a chat; None if they are not."""
        self.names_end_ids = bool(end_tokens)
        """Whether `end_ids` are the task's own choice, to which no model adds."""
        if len(system) > CHARACTERS_PER_TOKEN * max_prompt_tokens:  # see `encode_prompt`
            remedy = (
                f"it has {len(system):,} characters; shorten it or raise max_prompt_tokens, now {max_prompt_tokens}"
            )
            raise SettingError("system", f"{system[:40]}...", remedy)
        self._encoder = TextEncoder(
            self.tokenizer,
            self.chat_template,
            system=system,
            replies=bool(tools) or reply is not None,
            tool_replies=bool(tools),
            end_tokens=[end_tokens] if isinstance(end_tokens, str) else end_tokens,
        )
        self._encoder.probe()
        self._several_turns = bool(tools) or reply is not None
        self._warned_long_reply = False
        self.items = read_items(
            prompts,
            prompt=prompt,
            reference=reference,
            split_shares=split_shares,
            shares=shares,
            subset=subset,
            max_rows=max_rows,
            unusable_rows=unusable_rows,
            tools=chat,
            check=self._check_item,
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end a turn: those of `end_tokens`, or of tokenizer, the model that it belongs to, and agents."""
        return self._encoder.end_ids

    def add_end_ids(self, ids: frozenset[int]) -> None:
        """End turns with these too: agents add those of the model that they train."""
        if not self.names_end_ids:
            self._encoder.end_ids |= ids

    def with_end_ids(self, ids: frozenset[int]) -> TextTask:
        """Return the task as another model sees it, whose texts end with these too; this one stays as it is."""
        if self.names_end_ids or ids <= self.end_ids:
            return self
        other = copy.copy(self)
        other._encoder = copy.copy(self._encoder)
        other.add_end_ids(ids)
        return other

    def size(self, split: str) -> int:
        """See `Task.size`."""
        return self.items.size(split)

    def item(self, split: str, seed: int, index: int) -> Item:
        """See `Task.item`.

        Raises: SettingError if a user's function that draws items raised.
        """
        if isinstance(self.items, ListItems):
            return self.items.item(split, seed, index)
        return call_user("prompts", f"{split}/{seed}/{index}", self.items.item, split, seed, index)

    def encode_prompt(self, item: Item) -> list[int]:
        """See `Task.encode_prompt`.

        Raises: DataError if it is empty, longer than `max_prompt_tokens`, or would hold a special token; SettingError
            for a conversation without `chat`.
        """
        if item.messages and not self.chat:
            raise SettingError("chat", False, f"the prompt of {item.key} is a conversation; set chat to true")
        characters = sum(len(message["content"]) for message in item.messages) or len(item.prompt)
        if characters > CHARACTERS_PER_TOKEN * self.max_prompt_tokens:  # not to be encoded first, which takes minutes
            limit = f"raise max_prompt_tokens, now {self.max_prompt_tokens}"
            remedy = f"it has {characters:,} characters; shorten it or {limit}"
            raise TooLongError("prompt", item.key, remedy)
        ids = self._prompt_ids(self._encoder, item)
        if len(ids) > self.max_prompt_tokens:
            remedy = f"it has {len(ids)} tokens; shorten it or raise max_prompt_tokens, now {self.max_prompt_tokens}"
            raise TooLongError("prompt", item.key, remedy, len(ids))
        return ids

    def _prompt_ids(self, encoder: TextEncoder, item: Item) -> list[int]:
        tools = item.tools or (self.tools.schemas if self.tools else ())
        if not item.messages and not tools:
            return encoder.prompt(item.key, item.prompt)
        messages = item.messages or [{"role": "user", "content": item.prompt}]
        return encoder.conversation(item.key, messages, tools)

    def format_of(
        self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], *, teacher_prompt: str | None = None
    ) -> PromptFormat | None:
        """How a teacher with this tokenizer and these end ids reads prompts; None if as its student does.

        `teacher_prompt` is the template of a prompt that it reads in the student's place (rlgkd.envs.data.hints). Such
        a prompt may be longer than `max_prompt_tokens`.

        Raises: SettingError if its chat template has no place for one of the task's messages, or for a template with a
            brace that holds no name.
        """
        encode = self._prompt_ids
        if teacher_prompt is not None:
            hinted = hinted_by(teacher_prompt)

            def encode(encoder: TextEncoder, item: Item) -> list[int]:
                return self._prompt_ids(encoder, hinted(item))

        ends = self.end_ids if self.names_end_ids else end_ids
        shortest = max(1, self._encoder.around_replies - 1) + 1  # a reply, and a turn of one token before it
        most_replies = self.max_new_tokens // shortest if self._several_turns else 0
        return teacher_format(
            self._encoder, tokenizer, ends, encode, most_replies=most_replies, template=teacher_prompt or ""
        )

    def encode_completion(self, text: str) -> list[int]:
        """See `Task.encode_completion`; after a plain prompt, the completion begins with a space."""
        return self._encoder.completion(text)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """See `Task.decode_completion`: the text before a stop string, without outer white space.

        It has special tokens only if they are not skipped, and never the end token.
        """
        ended = bool(ids) and ids[-1] in self.end_ids  # an end token need not be special to the tokenizer
        kept = list(ids[:-1] if ended else ids)
        text = str(self.tokenizer.decode(kept, skip_special_tokens=self.skip_special_tokens))
        return (text if self.stops is None else self.stops.text_before_stop(text)).strip()

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        """See `Task.reply`.

        Raises: SettingError if the user's `reply` raised, or returned neither a text nor None.
        """
        text = self._answer(item, turns)
        if text is not None and self.chat and not item.messages:
            self._encoder.compare_turns(item.prompt, [*turns, text])
        return text

    def _answer(self, item: Item, turns: Sequence[str]) -> str | None:
        if self.tools is not None:
            with restored_state():
                return self.tools.answer(turns[-1])
        if self.reply_of is None:
            return None
        remedy = "return a text, or None where the episode is over"
        name = callable_name(self.reply_of)
        text: Any = call_user("reply", name, self.reply_of, item, turns, remedy=remedy)
        if text is not None and not isinstance(text, str):
            raise SettingError("reply", name, f"it returned {text!r:.60}; {remedy}")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:  # which no tokenizer takes
            raise SettingError("reply", name, f"it returned half of a surrogate pair; {remedy}") from error
        return text

    def encode_reply(self, text: str, *, closed: bool = True) -> list[int]:
        """See `Task.encode_reply`; with `chat`, a reply is the user's next message."""
        # What cannot fit is not encoded whole, which takes minutes.
        ids = self._encoder.reply(text[: CHARACTERS_PER_TOKEN * self.max_new_tokens], closed=closed)
        if len(ids) >= self.max_new_tokens and not self._warned_long_reply:
            self._warned_long_reply = True
            _log.warning(
                "reply %r has %d tokens and never fits, so the episode ends at the limit, as others may; "
                "shorten it, or raise max_new_tokens, now %d",
                text[:40],
                len(ids),
                self.max_new_tokens,
            )
        return ids

    def score(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> list[Score]:
        """See `Task.score`."""
        return self.grader(items, completions, **self._extra_arguments(completions, turns, ids))

    @property
    def is_async(self) -> bool:
        """Whether the reward is async; False if a subclass scores in its own way."""
        return self.grader.is_async and type(self).score is TextTask.score

    def submit(
        self,
        items: Sequence[Item],
        completions: Sequence[str],
        *,
        turns: Sequence[Sequence[str]] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> PendingScores:
        """See `AsyncTask.submit`."""
        return self.grader.submit(items, completions, **self._extra_arguments(completions, turns, ids))

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        """See `Task.quality`; empty if the task has no measures.

        Raises: SettingError if the user's `quality` raised, or returned anything but numbers by name for each text.
        """
        if self.quality_of is None:
            return [{} for _ in items]
        name = callable_name(self.quality_of)
        returned: Any = call_user("quality", name, self.quality_of, items, completions)
        try:
            return measures_of(returned, len(items))
        except (TypeError, ValueError) as error:
            remedy = "return a list with a mapping of numbers for each text, without names that do not apply to it"
            raise SettingError("quality", name, f"{error}; {remedy}") from error

    def _check_item(self, item: Item) -> None:
        """Raise DataError for an item that cannot be used."""
        self.encode_prompt(item)
        if not item.reference and getattr(self.grader.reward, "needs_references", False):
            raise DataError("reference", item.key, "it has none, with which the reward compares; fill it in")

    def _extra_arguments(
        self, completions: Sequence[str], turns: Sequence[Sequence[str]], ids: Sequence[Sequence[int]]
    ) -> dict[str, Sequence[Any]]:
        """The arguments that a reward may ask for apart from items and completions."""
        extra: dict[str, Sequence[Any]] = {"turns": turns or [[text] for text in completions]}
        if ids and self.grader.asks_for("tokens"):
            extra["tokens"] = [[str(self.tokenizer.decode([token])) for token in row] for row in ids]
        return extra
