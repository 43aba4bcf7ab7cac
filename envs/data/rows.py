"""Makes items of rows: templates, columns, keys.

A row is a mapping of columns to values. A template is a column's name, or a text with columns in braces, such as
`Question: {question}` (rlgkd.envs.text.format_string). A dotted name, `reward_model.ground_truth`, is a column's field.
A prompt's column may hold a conversation, a reference's a list of right answers or a conversation that ends with the
answer (rlgkd.envs.data.conversations). All columns are passed on to the reward by name, except those that are called
like its own arguments (`prompt`, `completion`, `reference`, `item` and their plurals).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rlgkd.envs.data.conversations import is_conversation, read_conversation, read_tools, shown, split_answer
from rlgkd.envs.text.format_string import FormatString
from rlgkd.errors import DataError, SettingError, in_one_message
from rlgkd.types import REWARD_ARGUMENTS, Item, Message

Row = Mapping[str, Any]
Rows = list[tuple[str, Row]]
"""Rows with their keys, which say where a row comes from: `questions.jsonl:17`."""
RESERVED_COLUMNS = {*REWARD_ARGUMENTS, *REWARD_ARGUMENTS.values()}
"""A reward's own arguments: a column of that name must never stand in for the model's completion."""
_log = logging.getLogger(__name__)


class UnusableRows:
    """Rows that cannot be used: all of them are named in one error, or they are left out and counted."""

    def __init__(self, action: str = "refuse") -> None:
        """`action` is `refuse` or `drop`.

        Raises: SettingError for another one.
        """
        if action not in ("refuse", "drop"):
            raise SettingError("unusable_rows", action, "choose one of refuse, drop")
        self.action = action
        self.seen = 0
        self.errors: list[tuple[str, DataError]] = []

    def usable(self, key: str, make: Callable[[], Item]) -> Item | None:
        """Return the item that `make` returns, or None, and keep the reason, if the row cannot be used."""
        self.seen += 1
        try:
            return make()
        except DataError as error:
            self.errors.append((key, error))
            return None

    def settle(self) -> None:
        """Say which rows cannot be used, once all have been seen.

        Raises: DataError if rows are not to be left out, or none would remain; it names the first ones.
        """
        if not self.errors:
            return
        none_is_left = len(self.errors) == self.seen
        hint = "" if none_is_left else "; unusable_rows: drop leaves such rows out"
        error = in_one_message(self.errors, self.seen, hint)
        if self.action == "refuse" or none_is_left:
            raise error
        _log.warning("%d of %d rows are left out: %s", len(self.errors), self.seen, error)


class RowItems:
    """Makes items of rows by two templates."""

    def __init__(
        self,
        prompt: str,
        reference: str | None,
        *,
        tools: bool = False,
        check: Callable[[Item], None] | None = None,
        unusable: UnusableRows | None = None,
    ) -> None:
        """Read the templates.

        Args:
            prompt: Column or template.
            reference: Column or template; None takes the column `reference` if a row has one.
            tools: Whether a column `tools` holds the schemas of tools.
            check: Raises a DataError for an item that cannot be used.
            unusable: Keeps the rows that cannot be used.

        Raises: SettingError.
        """
        self._prompt = _reader("prompt", prompt)
        self._reference = _reader("reference", "reference" if reference is None else reference)
        self._reference_is_optional = reference is None
        self._tools = tools
        self._check = check
        self.unusable = unusable or UnusableRows()

    def items(self, rows: Rows) -> list[Item]:
        """Return the items of all rows that can be used; a column that only some rows have is None in the others."""
        columns = dict.fromkeys(column for _, row in rows for column in row if column not in RESERVED_COLUMNS)
        made = [self.unusable.usable(key, partial(self._item, key, row, columns)) for key, row in rows]
        return [item for item in made if item is not None]

    def item(self, key: str, row: Row) -> Item:
        """Return the item of one row.

        Raises: DataError if the row cannot be used.
        """
        return self._item(key, row, [name for name in row if name not in RESERVED_COLUMNS])

    def _item(self, key: str, row: Row, columns: Iterable[str]) -> Item:
        prompt = self._prompt(key, row)
        messages: tuple[Message, ...] = ()
        answer = ""
        if isinstance(prompt, str):
            text = _encodable("prompt", key, prompt)
        else:
            messages, answer = split_answer(read_conversation("prompt", key, prompt))
            text = _encodable("prompt", key, shown(messages)) if messages else ""
        if not text.strip():
            raise DataError("prompt", key, "it is empty or white space; fill it in, or leave the row out")
        reference, references = self._right_answers(key, row)
        item = Item(
            key=key,
            prompt=text,
            reference=reference or answer,
            references=references,
            messages=messages,
            tools=read_tools(key, row.get("tools")) if self._tools else (),
            columns={name: row.get(name) for name in columns},
        )
        if self._check is not None:
            self._check(item)
        return item

    def _right_answers(self, key: str, row: Row) -> tuple[str, tuple[str, ...]]:
        """The reference, and all of them if the data has a list of right answers."""
        if self._reference_is_optional and (row.get("reference") is None or _is_empty_list(row["reference"])):
            return "", ()
        value = self._reference(key, row)
        if isinstance(value, str):
            return _encodable("reference", key, value), ()
        if is_conversation(value):
            _, answer = split_answer(read_conversation("reference", key, value))
            if not answer:
                raise DataError("reference", key, "its last message is not the assistant's; give the answer")
            return _encodable("reference", key, answer), ()
        texts = [_encodable("reference", key, _text("reference", key, "reference", one)) for one in value]
        return texts[0], tuple(texts)


def _is_empty_list(value: object) -> bool:
    return isinstance(value, list | tuple) and not value


def template(field: str, text: Any) -> Callable[[str, Row], str]:
    """Return a function of a row's key and the row that makes a text: `text` is a column's name or a format string.

    Raises: SettingError for a brace that holds no column's name. When called, DataError for a column that is missing,
        is null, or holds no text or number.

    Examples:
        >>> template("prompt", "Q: {question} {{x}}")("questions.jsonl:1", {"question": "1 + {x}?"})
        'Q: 1 + {x}? {x}'
    """
    if isinstance(text, Mapping):  # what YAML makes of {question}
        remedy = f'YAML reads braces as a mapping; quote the text: {field}: "{{column}}" in a file, '
        raise SettingError(field, text, remedy + f"'env_settings.{field}=\"{{column}}\"' on the command line")
    if not isinstance(text, str) or not text:
        raise SettingError(field, text, "give a column's name, or a text with {column} in it")
    if "{" not in text and "}" not in text:
        return lambda key, row: _column_text(field, text, key, row)
    format_string = FormatString(field, text)
    unreported = set(format_string.doubled_names)

    def fill(key: str, row: Row) -> str:
        for name in unreported & row.keys():
            unreported.discard(name)
            _log.warning("%s %r writes {%s} as it stands: for the column, do not double the braces", field, text, name)
        return format_string.fill(lambda column: _column_text(field, column, key, row))

    return fill


def as_row(key: str, given: Any) -> Row:
    """Return a row, or a string or a conversation as the row {"prompt": ...}.

    Raises: DataError for anything else.
    """
    if isinstance(given, str) or is_conversation(given):
        return {"prompt": given}
    if not isinstance(given, Mapping):
        raise DataError("data", key, f"it is of type {type(given).__name__}; give a string, or {{column: value}}")
    return given


def _reader(field: str, text: Any) -> Callable[[str, Row], Any]:
    """As `template`, but a column alone may also hold a list: a conversation, or right answers."""
    fill = template(field, text)
    if "{" in text or "}" in text:
        return fill

    def read(key: str, row: Row) -> Any:
        value = _column(field, text, key, row)
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if is_list and value and (field == "reference" or is_conversation(value)):
            return value
        return fill(key, row)

    return read


def _column(field: str, column: str, key: str, row: Row) -> Any:
    """The value of a column, or of a dotted name: a column's field, or the entry of a list by its number from 0.

    A column that is called so, with its dots, comes first.
    """
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            known = ", ".join(map(repr, _names(row))) or "none"
            raise DataError(field, column, f"{key} has no such column; there are: {known}")
    return value


def _names(row: Row) -> Iterator[str]:
    """The columns, those with fields as the dotted names of these."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in _names(value))
        else:
            yield name


def _column_text(field: str, column: str, key: str, row: Row) -> str:
    return _text(field, key, column, _column(field, column, key, row))


def _text(field: str, key: str, column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # NaN is how tables store an empty cell
        raise DataError(field, column, f"it is null in {key}; fill it in, or leave the row out")
    if isinstance(value, Mapping) and value:
        fields = ", ".join(repr(f"{column}.{name}") for name in _names(value))
        raise DataError(field, column, f"it holds a {type(value).__name__} in {key}; name one of {fields}")
    if isinstance(value, Mapping | bytes) or (isinstance(value, Sequence) and not isinstance(value, str)):
        kind = "texts, or of conversations: [{role: ..., content: ...}]" if field == "prompt" else "texts"
        raise DataError(field, column, f"it holds a {type(value).__name__} in {key}; give a column of {kind}")
    return str(value)


def _encodable(field: str, key: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start + 1} is half of a surrogate pair"
        raise DataError(field, key, f"{half} (\\u{ord(text[error.start]):04x}); fix the text") from error
    return text
