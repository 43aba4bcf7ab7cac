"""Makes items of rows: templates, columns, keys.

A row is a mapping of columns to values. A template is a column's name, or a text with columns in braces, such as
`Question: {question}` (rlgkd.envs.text.format_string). All columns are passed on to the reward by name, except those
that are called like its own arguments (`prompt`, `completion`, `reference`, `item` and their plurals).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlgkd.envs.text.format_string import FormatString
from rlgkd.errors import DataError, SettingError
from rlgkd.types import REWARD_ARGUMENTS, Item

Row = Mapping[str, Any]
Rows = list[tuple[str, Row]]
"""Rows with their keys, which say where a row comes from: `questions.jsonl:17`."""
RESERVED_COLUMNS = {*REWARD_ARGUMENTS, *REWARD_ARGUMENTS.values()}
"""A reward's own arguments: a column of that name must never stand in for the model's completion."""
_log = logging.getLogger(__name__)


class RowItems:
    """Makes items of rows by two templates."""

    def __init__(self, prompt: str, reference: str | None) -> None:
        """Read the templates; a `reference` of None takes the column `reference` if a row has one.

        Raises: SettingError.
        """
        self._prompt = template("prompt", prompt)
        self._reference = template("reference", "reference" if reference is None else reference)
        self._reference_is_optional = reference is None

    def items(self, rows: Rows) -> list[Item]:
        """Return all items; a column that only some rows have is None in the others."""
        columns = dict.fromkeys(column for _, row in rows for column in row if column not in RESERVED_COLUMNS)
        return [self._item(key, row, columns) for key, row in rows]

    def item(self, key: str, row: Row) -> Item:
        """Return the item of one row."""
        return self._item(key, row, [name for name in row if name not in RESERVED_COLUMNS])

    def _item(self, key: str, row: Row, columns: Iterable[str]) -> Item:
        prompt = _encodable("prompt", key, self._prompt(key, row))
        if not prompt.strip():
            raise DataError("prompt", key, "it is empty or white space; fill it in, or leave the row out")
        reference = ""
        if not (self._reference_is_optional and row.get("reference") is None):
            reference = _encodable("reference", key, self._reference(key, row))
        return Item(key=key, prompt=prompt, reference=reference, columns={name: row.get(name) for name in columns})


def template(field: str, text: Any) -> Callable[[str, Row], str]:
    """Return a function of a row's key and the row that makes a text: `text` is a column's name or a format string.

    Raises: SettingError for a brace that holds no column's name. When called, DataError for a column that is missing,
        is null, or holds no text or number.

    Example:
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
    """Return a row, or a string as the row {"prompt": string}.

    Raises: DataError for anything else.
    """
    if isinstance(given, str):
        return {"prompt": given}
    if not isinstance(given, Mapping):
        raise DataError("data", key, f"it is a {type(given).__name__}; give a string, or {{column: value}}")
    return given


def _column_text(field: str, column: str, key: str, row: Row) -> str:
    if column not in row:
        known = ", ".join(map(repr, row)) or "none"
        raise DataError(field, column, f"{key} has no such column; there are: {known}")
    value = row[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # NaN is how tables store an empty cell
        raise DataError(field, column, f"it is null in {key}; fill it in, or leave the row out")
    if isinstance(value, Mapping | bytes) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise DataError(field, column, f"it holds a {type(value).__name__} in {key}; give a column of texts")
    return str(value)


def _encodable(field: str, key: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start + 1} is half of a surrogate pair"
        raise DataError(field, key, f"{half} (\\u{ord(text[error.start]):04x}); fix the text") from error
    return text
