"""How a sample becomes a model's input: a text with fields in braces, a pair of texts, or a chat.

Text of the data and of the policy stays plain text on its way to token ids: a completion that spells out a model's end
token, or the mark that begins a message, does not become that token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.text.chat_template import ChatTemplate
from rlgkd.envs.text.format_string import FormatString
from rlgkd.errors import SettingError
from rlgkd.lm.text_format import tokens_before_texts
from rlgkd.types import REWARD_ARGUMENTS

ModelInput = Mapping[str, list[int]]
"""A model's inputs for one sample: `input_ids`, and what else its tokenizer returns."""


class Template:
    """A text with fields: `{prompt}`, `{completion}`, `{reference}` or a column of the data; `{{` is a brace."""

    def __init__(self, text: str, needs: Sequence[str] = ("completion",)) -> None:
        """Read the fields.

        Raises: SettingError for braces that hold no field, or a field of `needs` that is missing.
        """
        self._format = FormatString("template", text)
        self.text = text
        self.fields = self._format.names
        for name in self.fields:
            if not name.isidentifier():  # a reward asks for its columns by the names of its arguments
                raise SettingError("template", text, f"{name!r} can be no argument of a reward; rename the column")
        for name in needs:
            if name not in self.fields:
                raise SettingError("template", text, f"it lacks the field {{{name}}}")

    def __call__(self, **values: object) -> str:
        """Fill in these values; of several right answers all, with `or` between them."""
        texts = {name: " or ".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
        return self._format.fill(texts.__getitem__)


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes samples as a model's inputs."""

    fields: tuple[str, ...]
    """The parts of a sample that are encoded."""
    encode: Callable[..., ModelInput]
    """Takes the fields of one sample by name."""

    def encode_batch(self, columns: Mapping[str, Sequence[str]]) -> list[ModelInput]:
        """Encode each sample of a batch, whose columns have the names that `argument_names` gives."""
        return [self.encode(**sample) for sample in samples_of(self.fields, columns)]


def argument_names(fields: Sequence[str]) -> tuple[str, ...]:
    """The arguments that fill these fields: `completions` for `completion`; a column keeps its name."""
    return tuple(REWARD_ARGUMENTS.get(name, name) for name in fields)


def first_answer(value: Any) -> Any:
    """Return the first of several right answers, which stands for all where a model reads one text."""
    return value[0] if isinstance(value, tuple) else value


def samples_of(fields: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the samples of a batch, each as {field: value}."""
    rows = zip(*(columns[name] for name in argument_names(fields)), strict=True)
    return [dict(zip(fields, row, strict=True)) for row in rows]


def text_encoder(tokenizer: PreTrainedTokenizerBase, template: Template, *, continued: bool = False) -> SampleEncoder:
    """Encode one text; a template may end with the tokenizer's end token, which then becomes that token.

    If the model is to continue the text, what the tokenizer puts after one, as some put the end token, is left out.
    """
    before = tokens_before_texts(tokenizer) if continued else []
    end = str(tokenizer.eos_token) if tokenizer.eos_token is not None else None
    ends = end is not None and template.text.endswith(end)
    body = Template(template.text.removesuffix(cast(str, end)), ()) if ends else template

    def encode(**values: str) -> ModelInput:
        if continued:
            ids = [*before, *_tokenized(tokenizer, body(**values), add_special_tokens=False)["input_ids"]]
            row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        else:
            row = {name: list(ids) for name, ids in _tokenized(tokenizer, body(**values)).items()}
        if ends:
            for name, extra in (("input_ids", tokenizer.eos_token_id), ("attention_mask", 1), ("token_type_ids", 0)):
                if name in row:
                    row[name].append(cast(int, extra))
        return row

    return SampleEncoder(template.fields, encode)


def pair_encoder(tokenizer: PreTrainedTokenizerBase, first: str, second: str) -> SampleEncoder:
    """Encode two fields as the tokenizer joins a pair."""
    return SampleEncoder(
        (first, second),
        lambda **values: _tokenized(tokenizer, first_answer(values[first]), first_answer(values[second])),
    )


def chat_encoder(tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, Template]) -> SampleEncoder:
    """Encode messages, each a role and its template, by the tokenizer's chat template."""
    first, *others = ChatTemplate(tokenizer).pieces(*(role for role, _ in messages))

    def encode(**values: str) -> ModelInput:
        row = list(first)
        for (_, template), piece in zip(messages, others, strict=True):
            text = template(**{name: values[name] for name in template.fields})
            row += _tokenized(tokenizer, text, add_special_tokens=False)["input_ids"]
            row += piece
        return {"input_ids": row, "attention_mask": [1] * len(row)}

    fields = dict.fromkeys(name for _, template in messages for name in template.fields)
    return SampleEncoder(tuple(fields), encode)


def first_tokens(tokenizer: PreTrainedTokenizerBase, *answers: str) -> list[int]:
    """Return the token that each answer begins with.

    Raises: SettingError if an answer is empty, or two begin with the same token.
    """
    ids = [_tokenized(tokenizer, answer, add_special_tokens=False)["input_ids"][:1] for answer in answers]
    if [] in ids or len({*map(tuple, ids)}) < len(answers):
        raise SettingError("answers", answers, "give answers that begin with different tokens of this tokenizer")
    return [first for (first,) in ids]


def _tokenized(tokenizer: PreTrainedTokenizerBase, *texts: str, **settings: Any) -> ModelInput:
    """A text or a pair of texts, in which nothing becomes a special token."""
    return cast(ModelInput, tokenizer(*texts, split_special_tokens=True, verbose=False, **settings))
