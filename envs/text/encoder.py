"""The token ids of prompts, completions and replies, plain or in a chat template.

A user's text stays ordinary text: what looks like a special token in it does not become one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.text.chat_template import ChatTemplate
from rlgkd.envs.text.served import ServedComparison
from rlgkd.errors import DataError, SettingError
from rlgkd.lm.text_format import end_token, special_tokens, tokenizer_end_ids, tokens_before_texts
from rlgkd.types import Message

MAX_CACHED_PROMPTS = 4096
"""Prompts whose ids are kept: to encode one takes as long as some decode steps of a small model."""
Frame = tuple[list[int], list[int]]
"""Ids before and after a message."""
TOOLS_MESSAGE = """You may call these tools:
{schemas}
To call one, write <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call> and end your turn."""
"""What a system's message says of tools if the chat template has no place for them."""
_log = logging.getLogger(__name__)


class TextEncoder:
    """Encodes texts with one tokenizer; with a chat template a prompt is a user's message in it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate | None = None,
        *,
        system: str = "",
        replies: bool = False,
        tool_replies: bool = False,
        end_tokens: Sequence[str] = (),
    ) -> None:
        """Read what the chat template puts around messages; None encodes texts as they are.

        `system` is a message before the prompt, `replies` says whether there are replies, and `tool_replies` whether
        they are those of tools: of the role `tool`, or the user's if the template has no such role. `end_tokens` are
        all that end a text, the first of which ends one that is encoded; empty takes the model's.

        Raises: ModelError for a tokenizer without an end token; SettingError for a chat template that has no place for
            a message, or an end token that the tokenizer does not have.
        """
        self.tokenizer = tokenizer
        self.template = template
        self._settings: dict[str, Any] = {
            "system": system,
            "replies": replies,
            "tool_replies": tool_replies,
            "end_tokens": end_tokens,
        }
        given = [_id_of(tokenizer, token) for token in end_tokens]
        self.end = given[0] if given else end_token(tokenizer)
        self.end_ids = frozenset(given) or tokenizer_end_ids(tokenizer)
        # The unknown token may occur, because it stands for any character that the tokenizer does not know.
        self._special = {
            id_: text
            for id_, text in special_tokens(tokenizer).items()
            if text != tokenizer.unk_token or id_ == self.end
        }
        self._cached_prompts: dict[str, list[int]] = {}
        self._cached_pieces: dict[str, list[list[int]]] = {}
        self._system = system
        self._warned_unknown = False
        self._reply_role = "user"
        self._prompt_frame: Frame = (tokens_before_texts(tokenizer), [])
        self._reply_frame: Frame = ([], [])
        self._turn_end: int | None = None
        self._comparison: ServedComparison | None = None
        if template is not None:
            self._comparison = ServedComparison(template)
            self._prompt_frame = self._first_frame(template)
            self._turn_end = _token_after_answer(template)
            if replies:
                self._reply_frame = self._next_frame(template, tool_replies)

    def prompt(self, key: str, text: str) -> list[int]:
        """Return the ids of a prompt; `key` names it in errors.

        A plain one begins as the tokenizer begins a text, most often with its BOS or with nothing. What it puts after
        a text, as T5's does, is left out, for the completion follows.

        Raises: DataError if it is empty, or would hold a special token.
        """
        message = self._cached_prompts.get(text)
        if message is None:
            message = self.plain("prompt", key, text)
            if len(self._cached_prompts) >= MAX_CACHED_PROMPTS:
                self._cached_prompts.clear()
            self._cached_prompts[text] = message
        if not message:
            raise DataError("prompt", key, "it is empty; give a prompt of at least one token")
        before, after = self._prompt_frame
        ids = [*before, *message, *after]
        if self._comparison is not None and self._comparison.watches([self._system, text]):
            self._comparison.report(self._with_system([{"role": "user", "content": text}], ()), ids)
        return ids

    def conversation(self, key: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the ids of a conversation in the chat template, up to where the answer begins.

        The system's message comes first unless the conversation has one of its own. Tools that the template does not
        show are described in the system's message.

        Raises: DataError if the template refuses the conversation, or a text in it would hold a special token.
        """
        try:
            messages = self._with_system(messages, tools)
            pieces = self._pieces(messages, tools)
        except SettingError as error:
            raise DataError("prompt", key, error.remedy) from error
        self._refuse_special_texts(key, messages, tools)
        ids = list(pieces[0])
        contents = [message["content"] for message in messages if message["content"]]
        for content, piece in zip(contents, pieces[1:], strict=True):
            ids += [*self.plain("prompt", key, content), *piece]
        if self._comparison is not None and self._comparison.watches(contents):
            self._comparison.report(messages, ids, tools)
        return ids

    def completion(self, text: str) -> list[int]:
        """Return the ids of a completion, end token included; after a plain prompt it begins with a space.

        In a chat, the end token is the one that the template puts after an answer, if it puts one.

        Raises: DataError if it would hold another special token.
        """
        return [*self.plain("completion", text[:40], text if self.template else f" {text}"), self.answer_end]

    @property
    def system(self) -> str:
        """The message before each prompt, empty if there is none."""
        return self._system

    @property
    def answer_end(self) -> int:
        """The token that ends a completion."""
        return self._turn_end if self._turn_end in self.end_ids else self.end

    def reply(self, text: str, *, closed: bool = True) -> list[int]:
        """Return the ids of a reply; with `chat`, it is the user's next message.

        If the policy's turn is not `closed` by an end token of its own, the one of the template comes first.

        Raises: DataError if it would hold a special token.
        """
        before, after = self._reply_frame
        if closed and before and before[0] in self.end_ids:
            before = before[1:]
        return [*before, *self.plain("reply", text[:40], text), *after]

    def plain(self, field: str, key: str, text: str) -> list[int]:
        """Return the ids of a text without anything around it.

        Raises: DataError if the tokenizer has no other way to write a special token's text than by that token, and for
            half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:  # which no tokenizer takes
            raise DataError(field, key, f"it holds half of a surrogate pair ({error.reason}); leave it out") from error
        ids = cast(list[int], self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for id_ in self._special.keys() & set(ids):
            raise DataError(
                field, key, f"this tokenizer makes its special token {self._special[id_]!r} of it; reword it"
            )
        if self.tokenizer.unk_token_id in ids and not self._warned_unknown:
            self._warned_unknown = True
            _log.warning("%s %r holds characters that the tokenizer does not know, as others may", field, key)
        return ids

    def with_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], *, plain: bool = False
    ) -> TextEncoder:
        """The same of another model, with its end ids and its chat template, or without any if `plain`.

        Raises: SettingError for a template that has no place for a message.
        """
        template = None if plain or self.template is None else self.template.of(tokenizer)
        other = TextEncoder(tokenizer, template, **self._settings)
        if not self._settings["end_tokens"]:
            other.end_ids = end_ids
        if other._turn_end == self.answer_end:  # its template ends answers so, whatever its configuration names
            other.end_ids |= {self.answer_end}
        return other

    def writes_as(self, other: TextEncoder) -> bool:
        """Whether all that stands around messages is the same, as far as one can tell without messages at hand."""
        frames = [(e._prompt_frame, e._reply_frame, e.answer_end) for e in (self, other)]
        if frames[0] != frames[1] or self.template is None or other.template is None or self._settings["replies"]:
            return frames[0] == frames[1]
        return self.template.source == other.template.source

    def example(self) -> str:
        """A short prompt as it is written, special tokens included; with an answer and a reply if there are replies."""
        frames = [self._prompt_frame, *([self._reply_frame] if self._settings["replies"] else [])]
        return "...".join(str(self.tokenizer.decode(part)) for frame in frames for part in frame)

    @property
    def around_prompts(self) -> int:
        """Tokens around a prompt."""
        return sum(map(len, self._prompt_frame))

    @property
    def around_replies(self) -> int:
        """Tokens around a reply, the end of an answer included if the template puts one there."""
        return sum(map(len, self._reply_frame))

    def compare_turns(self, prompt: str, turns: Sequence[str]) -> None:
        """Log the first conversation of a prompt and further turns that the template would make other ids of."""
        texts = [prompt, *turns]
        if self._comparison is not None and self._comparison.watches(texts):
            self._comparison.report(self._messages(texts), self._trained(texts))

    def _first_frame(self, template: ChatTemplate) -> Frame:
        if not self._system:
            before, after = template.pieces("user")
            return before, after
        first, between, after = template.pieces("system", "user")
        return [*first, *self.plain("system", "system", self._system), *between], after

    def _next_frame(self, template: ChatTemplate, of_tools: bool) -> Frame:
        """The ids around a user's message, or the result of a tool, that follows an answer of the policy's."""
        if of_tools:
            try:
                *_, before, after = template.pieces("user", "assistant", "tool")
                self._reply_role = "tool"
                return before, after
            except SettingError:  # this template has no such role
                pass
        *_, before, after = template.pieces("user", "assistant", "user")
        return before, after

    def _with_system(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Sequence[Message]:
        """The messages with the system's in front, and in it the tools that the template does not show."""
        said, rest = self._system, list(messages)
        if rest[0]["role"] == "system":
            said, rest = rest[0]["content"], rest[1:]
        if tools and not self._shows(tools):
            schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            said = "\n\n".join(filter(None, [said, TOOLS_MESSAGE.format(schemas=schemas)]))
        return [{"role": "system", "content": said}, *rest] if said else rest

    def _shows(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template shows tools."""
        asked = {"role": "user", "content": "..."}
        return self._pieces([asked], tools) != self._pieces([asked], ())

    def _pieces(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """The ids around the contents of the messages; they are the same for all conversations of one form."""
        form = json.dumps([[{**message, "content": bool(message["content"])} for message in messages], list(tools)])
        pieces = self._cached_pieces.get(form)
        if pieces is None:
            assert self.template is not None
            pieces = self.template.pieces(*messages, tools=tools)
            if len(self._cached_pieces) >= MAX_CACHED_PROMPTS:
                self._cached_pieces.clear()
            self._cached_pieces[form] = pieces
        return pieces

    def _refuse_special_texts(self, key: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        """Raise DataError for a special token in what the template itself writes: schemas, calls, names."""
        given = [{name: value for name, value in message.items() if name != "content"} for message in messages]
        text = json.dumps([given, list(tools)], ensure_ascii=False)
        for special in self._special.values():
            if special in text:
                raise DataError(
                    "prompt", key, f"a role, call or tool of it holds the special token {special!r}; reword it"
                )

    def probe(self) -> None:
        """Compare what is trained with what is served, of texts without anything to rewrite and of texts with it.

        A template that rewrites is reported once a message at hand is one that it would rewrite.
        """
        if self._comparison is None:
            return
        replies = self._settings["replies"]
        plain = [["Hello there"], *([["Hello there", "I see", "Go on"]] if replies else [])]
        for texts in plain:
            if self._comparison.report(self._messages(texts), self._trained(texts)):
                return
        rewritten = [[" Hello there "], *([["Hello there", "<think>so</think>I see", "Go on"]] if replies else [])]
        if any(self._comparison.differs(self._messages(texts), self._trained(texts)) for texts in rewritten):
            self._comparison.watch()

    def _messages(self, texts: Sequence[str]) -> Sequence[Message]:
        """A prompt, and the turns of the policy and the environment in alternation."""
        roles = ["user", *(self._reply_role if n % 2 else "assistant" for n in range(len(texts) - 1))]
        return self._with_system([{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)], ())

    def _trained(self, texts: Sequence[str]) -> list[int]:
        """The ids of the same texts, as training has them."""
        encoded = [
            cast(list[int], self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
            for text in texts
        ]
        before, after = self._prompt_frame
        ids = [*before, *encoded[0], *after]
        for answer, message in zip(encoded[1::2], encoded[2::2], strict=True):
            before, after = self._reply_frame  # it begins with what ends the answer
            ids += [*answer, *before, *message, *after]
        return ids


def _token_after_answer(template: ChatTemplate) -> int | None:
    try:
        *_, after = template.pieces("user", "assistant")
    except SettingError:  # a template for prompts alone
        return None
    return after[0] if after else None


def _id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that the setting `end_tokens` names."""
    id_ = tokenizer.get_vocab().get(token)
    if id_ is None:
        remedy = f"this tokenizer has no such token; its end token is {tokenizer.eos_token!r}"
        raise SettingError("end_tokens", token, remedy)
    return id_
