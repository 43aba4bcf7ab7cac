"""How a sample becomes a model's input: a text with fields in braces, a pair, or a chat.

What the data or the policy wrote stays plain text on its way to token ids: a completion that spells out a model's end
token, or the mark that begins a message, has not written one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.rewards.grader import SINGULAR
from rlgkd.envs.text.chat_template import chat_pieces
from rlgkd.envs.text.format_string import Braces
from rlgkd.errors import SettingError

Row = Mapping[str, list[int]]
"""A model's inputs for one sample: `input_ids`, and what else its tokenizer makes."""


class Template:
    """A text with fields: `{prompt}`, `{completion}`, `{reference}` or a column of the data; `{{` is a brace."""

    def __init__(self, text: str, needs: Sequence[str] = ("completion",)) -> None:
        """Read the fields.

        Raises: SettingError for braces that are no field, or a field of `needs` that is not there.
        """
        self._braces = Braces("template", text)
        self.text, self.fields = text, self._braces.names
        for name in self.fields:
            if not name.isidentifier():  # a reward asks for its columns by its arguments' names
                raise SettingError("template", text, f"{name!r} can be no argument of a reward; rename the column")
        for name in needs:
            if name not in self.fields:
                raise SettingError("template", text, f"it lacks the field {{{name}}}")

    def __call__(self, **values: object) -> str:
        """The text with these values."""
        return self._braces.fill(lambda name: str(values[name]))


@dataclass(frozen=True)
class Form:
    """What of a sample goes into a model, and as which token ids."""

    fields: tuple[str, ...]
    ids: Callable[..., Row]
    """Takes the fields by name."""

    def rows(self, columns: Mapping[str, Sequence[str]]) -> list[Row]:
        """One row for each sample of a batch, its columns named as `columns_of` has them."""
        return [self.ids(**sample) for sample in samples(self.fields, columns)]


def columns_of(fields: Sequence[str]) -> tuple[str, ...]:
    """What a reward takes to fill these fields: `completions` for `completion`, and a column under its own name."""
    return tuple(SINGULAR.get(name, name) for name in fields)


def samples(fields: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The batch as one mapping for each sample, by the fields' names."""
    rows = zip(*(columns[name] for name in columns_of(fields)), strict=True)
    return [dict(zip(fields, row, strict=True)) for row in rows]


def text_form(tokenizer: PreTrainedTokenizerBase, template: Template) -> Form:
    """One text; a template may end with the tokenizer's end token, which is then meant as such."""
    end = str(tokenizer.eos_token) if tokenizer.eos_token is not None else None
    ends = end is not None and template.text.endswith(end)
    body = Template(template.text.removesuffix(cast(str, end)), ()) if ends else template

    def ids(**values: str) -> Row:
        row = {name: list(row) for name, row in _plain(tokenizer, body(**values)).items()}
        if ends:
            for name, extra in (("input_ids", tokenizer.eos_token_id), ("attention_mask", 1), ("token_type_ids", 0)):
                if name in row:
                    row[name].append(cast(int, extra))
        return row

    return Form(template.fields, ids)


def pair_form(tokenizer: PreTrainedTokenizerBase, first: str, second: str) -> Form:
    """Two fields, joined as the tokenizer joins a pair."""
    return Form((first, second), lambda **values: _plain(tokenizer, values[first], values[second]))


def chat_form(tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, Template]) -> Form:
    """Messages of these roles, by the tokenizer's chat template."""
    first, *others = chat_pieces(tokenizer, *(role for role, _ in messages))

    def ids(**values: str) -> Row:
        row = list(first)
        for (_, template), piece in zip(messages, others, strict=True):
            text = template(**{name: values[name] for name in template.fields})
            row += [*_plain(tokenizer, text, add_special_tokens=False)["input_ids"], *piece]
        return {"input_ids": row, "attention_mask": [1] * len(row)}

    return Form(tuple(dict.fromkeys(name for _, template in messages for name in template.fields)), ids)


def first_tokens(tokenizer: PreTrainedTokenizerBase, *answers: str) -> list[int]:
    """The token that each answer begins with.

    Raises: SettingError where one is empty, or two begin alike.
    """
    ids = [_plain(tokenizer, answer, add_special_tokens=False)["input_ids"][:1] for answer in answers]
    if [] in ids or len({*map(tuple, ids)}) < len(answers):
        raise SettingError("answers", answers, "give answers that begin with different tokens of this tokenizer")
    return [first for (first,) in ids]


def _plain(tokenizer: PreTrainedTokenizerBase, *texts: str, **settings: Any) -> Row:
    """A text or a pair of them, in which nothing is read as a special token."""
    return cast(Row, tokenizer(*texts, split_special_tokens=True, verbose=False, **settings))
