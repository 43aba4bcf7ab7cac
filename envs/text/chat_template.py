"""A tokenizer's chat template as the pieces that it puts around messages.

Messages are encoded by themselves and put between the pieces, so that nothing in a message becomes a special token.
A template is code that comes with a model: whatever it raises is one line that names it, and its time is limited.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import SettingError, one_line
from rlgkd.time_limit import call_within
from rlgkd.types import Message

SECONDS = 5.0
"""A template that takes longer goes round for ever: a conversation takes some ten thousandths of one."""
MAX_CHARACTERS = 2**22
"""Characters that a template may write besides the messages; a million tokens of its own are a mistake."""
CALL_ID = "000000000"
"""The id of a call that has none: nine letters or digits, as Mistral's templates demand."""
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""A template's call for the present date; its argument is a format such as `%d %b %Y`."""
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""The names by which transformers chooses among several templates, without tools and with them."""


class ChatTemplate:
    """A tokenizer's chat template with its variables, on one day whatever the clock says."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        variables: Mapping[str, Any] | None = None,
        day: date | None = None,
    ) -> None:
        """Choose the template.

        Args:
            tokenizer: Its owner.
            name: Which of several templates; empty takes the one that transformers takes.
            variables: What the template is given besides messages and tools, such as `enable_thinking`.
            day: The day that `strftime_now` shows; None is today.

        Raises: SettingError if there is no template, none of that name, or several of which none is the default; or
            for a variable that transformers sets itself.
        """
        self.tokenizer = tokenizer
        self.variables = dict(variables or {})
        self.day = day or date.today()
        self._name = name
        found = tokenizer.chat_template
        if found is None:
            raise SettingError("chat", True, "this tokenizer has no chat template; set chat to false")
        self._templates: dict[str, str] = dict(found) if isinstance(found, Mapping) else {DEFAULT: found}
        known = ", ".join(sorted(self._templates))
        if name and name not in self._templates:
            remedy = f"this tokenizer's chat templates are {known}" if isinstance(found, Mapping) else "it has but one"
            raise SettingError("chat_template", name, f"{remedy}; choose one of them, or leave the setting out")
        if not name and DEFAULT not in self._templates:
            raise SettingError("chat_template", name, f"this tokenizer has several and no default; choose of {known}")
        own = inspect.signature(tokenizer.apply_chat_template).parameters.keys() | {"messages"}
        for variable in own & self.variables.keys():
            raise SettingError("chat_template_kwargs", variable, "it is no variable of the template; leave it out")

    def of(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The template of another tokenizer, with the same name, variables and day.

        Raises: SettingError as the constructor does.
        """
        return ChatTemplate(tokenizer, name=self._name, variables=self.variables, day=self.day)

    @property
    def source(self) -> str:
        """The template that shows no tools."""
        return self._templates[self._name or DEFAULT]

    @property
    def as_saved(self) -> str | dict[str, str]:
        """What a tokenizer is saved with, so that the chosen template is its default."""
        if self._name:
            return {**self._templates, DEFAULT: self.source}
        return cast("str | dict[str, str]", self.tokenizer.chat_template)

    @property
    def shows_the_day(self) -> bool:
        """Whether texts depend on the day."""
        return any(TODAY.search(text) for text in self._templates.values())

    def mentions(self, variable: str) -> bool:
        """Whether one of the templates has this name in it."""
        return any(re.search(rf"\b{re.escape(variable)}\b", text) for text in self._templates.values())

    def text(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Render a conversation; after a last message that is not the assistant's comes what begins the answer.

        Raises: SettingError, which names the template, if it refuses the conversation, fails, takes too long or writes
            too much.
        """
        text = cast(str, self._rendered(messages, tools, tokenize=False))
        if len(text) > MAX_CHARACTERS + 10 * len(repr(messages)) + 10 * len(repr(tools)):
            raise self._refusal(messages, f"writes {len(text):,} characters")
        return text

    def ids(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of `text`, as they are where the model is served."""
        return cast("list[int]", self._rendered(messages, tools, return_dict=False))

    def pieces(self, *roles: str | Message, tools: Sequence[Mapping[str, Any]] = ()) -> list[list[int]]:
        """Return the ids before, between and after messages of these roles: one piece more than there are roles.

        A role may be a message, for what else it holds: only one with content has a place between pieces. `tools` are
        shown as the template shows them.

        Raises: SettingError as `text` does, and for a template that does not hold each message once.
        """
        given = [{"role": role, "content": "..."} if isinstance(role, str) else role for role in roles]
        # U+2063, an invisible separator, keeps templates from finding a mark in their own text.
        messages = [
            {**message, "content": f"\u2063{message['role']} {number}\u2063" if message["content"] else ""}
            for number, message in enumerate(given)
        ]
        text = self.text(messages, tools=tools)
        pieces = []
        for message in messages:
            mark = message["content"]
            if not mark:
                continue
            if text.count(mark) != 1:
                raise self._refusal(messages, f"rewrites the message of the {message['role']}")
            before, text = text.split(mark)
            pieces.append(before)
        pieces.append(text)
        return [cast("list[int]", self.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], **how: Any) -> Any:
        try:
            try:
                return self._apply(messages, tools, how)
            except TimeoutError:
                raise
            except Exception:
                named = _with_call_ids(messages)
                if named == list(messages):
                    raise
                return self._apply(named, tools, how)
        except TimeoutError as error:
            raise self._refusal(messages, f"takes longer than {SECONDS:g} seconds") from error
        except TemplateError as error:
            raise self._refusal(messages, f"refuses it: {one_line(error, 200)}") from error
        except Exception as error:
            raise self._refusal(messages, f"fails: {type(error).__name__}: {one_line(error, 200)}") from error

    def _apply(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> Any:
        source = self.source
        if tools and not self._name:
            source = self._templates.get(WITH_TOOLS, source)
        now = datetime.combine(self.day, time())
        source = TODAY.sub(lambda match: repr(now.strftime(match[2])), source)
        return call_within(
            SECONDS,
            lambda: cast(Any, self.tokenizer).apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=source,
                add_generation_prompt=messages[-1]["role"] != "assistant",
                **how,
                **self.variables,
            ),
            warn=lambda reason: None,  # the error says all there is to say
        )

    def _refusal(self, messages: Sequence[Message], why: str) -> SettingError:
        has_system = any(message["role"] == "system" for message in messages)
        field, remedy = ("system", "leave it out") if has_system else ("chat", "set chat to false")
        name = f" {self._name!r}" if self._name else ""
        owner = f" of {self.tokenizer.name_or_path!r}" if self.tokenizer.name_or_path else ""
        return SettingError(field, True, f"this chat template{name}{owner} {why}; {remedy}")


def read_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    name: str,
    variables: Mapping[str, Any],
    day: str | date,
) -> ChatTemplate | None:
    """The chat template as a task's settings choose it; None without `chat`. `day` is YYYY-MM-DD, empty for today.

    Raises: SettingError as `ChatTemplate` does; for a setting without `chat`, a day that is none, or a variable that
        the template does not mention.
    """
    given = {"chat_template": name, "chat_template_kwargs": variables, "chat_template_date": day}
    for field, value in given.items():
        if value and not chat:
            raise SettingError(field, value, "prompts are in no chat template: set chat to true")
    if not chat:
        return None
    if not isinstance(variables, Mapping):
        raise SettingError("chat_template_kwargs", variables, "give names and values, such as {enable_thinking: false}")
    try:
        chosen = date.fromisoformat(day or date.today().isoformat()) if isinstance(day, str) else day
    except ValueError as error:
        raise SettingError("chat_template_date", day, "give a day as YYYY-MM-DD") from error
    template = ChatTemplate(tokenizer, name=name, variables=variables, day=chosen)
    for variable in variables:
        if not template.mentions(variable):
            raise SettingError("chat_template_kwargs", variable, "the chat template has no such variable; leave it out")
    return template


def _with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with an id at each call of a tool and each result that has none: some templates demand them."""
    named: list[Message] = []
    for message in messages:
        filled = dict(message)
        if filled["role"] == "tool":
            filled.setdefault("tool_call_id", CALL_ID)
        if filled.get("tool_calls"):
            filled["tool_calls"] = [{"id": CALL_ID, **call} for call in filled["tool_calls"]]
        named.append(filled)
    return named
