"""Items out of a user's data: lists, files, data sets and functions; prompts and references by template.

A row is a mapping of columns to values; a bare string is the row {"prompt": string}. A template is a column's name, or
a text with names in braces, such as `Question: {question}` (rlgkd.envs.text.format_string). All columns are handed to
the reward by name, save those that are called like its own arguments (`prompt`, `completion`, `reference`, `item`).

Splits are those of the data: a mapping {split: data}, a DatasetDict, a folder's files named train, validation, test. A
lone file, data set or function, or a split called train with no other beside it, is dealt out by the hash of the
prompt, eight tenths to train and one each to validation and test, so that a prompt that occurs twice is in one split. A
list in memory is whole in each.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlgkd.envs.data.procedural import SHARES, SplitItems, tenth
from rlgkd.envs.data.readers import SPLITS, Row, Rows, data_set, read_file, read_folder
from rlgkd.envs.data.sources import Items, ListItems
from rlgkd.envs.rewards.grader import SINGULAR
from rlgkd.envs.text.format_string import Braces
from rlgkd.errors import DataError, SettingError
from rlgkd.imports import import_object, is_import_path
from rlgkd.types import Item

Shares = Sequence[int] | Literal["auto"] | None
TAKEN = {*SINGULAR, *SINGULAR.values()}
"""Names of a reward's own arguments: the model's completion is never hidden by a column of that name."""
_log = logging.getLogger(__name__)


def read_items(
    data: Any, *, prompt: str = "prompt", reference: str | None = None, split_shares: Shares = "auto"
) -> Items:
    """The items that data holds.

    Args:
        data: A source of items, as it is; a list of strings or of rows; a file (.jsonl, .csv, .tsv, .parquet) or a
            folder of them; a `datasets` Dataset or DatasetDict, or the folder it was saved to; a mapping of splits to
            any of these; a function of `rng`, a random.Random, that draws a string or a row; or an import path of one
            of these, `package.module:name`.
        prompt: Column or template.
        reference: Column or template; None takes the column `reference` where there is one.
        split_shares: Tenths of all prompts for train, validation and test, (8, 1, 1) for a lone file, data set or
            function; None gives every row to each split, which is the default for a list in memory.

    Raises: SettingError for a malformed template; DataError for data that cannot be read, with its file and line.
    """
    shares = _shares(split_shares)
    if isinstance(data, Items) and callable(data.size):
        if (prompt, reference, split_shares) != ("prompt", None, "auto"):
            raise SettingError("prompt", prompt, "a source of items has prompts and splits of its own; leave it out")
        return data
    if isinstance(data, str) and is_import_path(data) and not Path(data).exists():
        named = import_object("data", data)
        return read_items(named, prompt=prompt, reference=reference, split_shares=split_shares)
    make = _Maker(prompt, reference)
    if callable(data):
        return SplitItems("data", _drawing(data, make), shares)
    rows, in_memory = _rows(data)
    if isinstance(rows, dict) and set(rows) != {"train"}:
        if split_shares != "auto":
            raise SettingError("split_shares", split_shares, f"the data has splits of its own: {', '.join(rows)}")
        return ListItems({split: make.items(part) for split, part in rows.items()})
    if isinstance(rows, dict):
        rows = rows["train"]
    items = make.items(rows)
    if split_shares is None or (in_memory and split_shares == "auto"):
        return ListItems(dict.fromkeys(SHARES, items))
    dealt = {split: [item for item in items if tenth(item.prompt) in tenths] for split, tenths in shares.items()}
    advice = (
        f"; {len(items)} rows were dealt out by hash: give a file for the split, or split_shares: null (None in Python)"
    )
    return ListItems({split: part for split, part in dealt.items() if part}, advice=advice)


def template(field: str, text: Any) -> Callable[[str, Row], str]:
    """What makes a text of a row and its place: `text` is a column's name, or has columns in braces.

    Raises: SettingError for a brace that holds no column's name. When called, DataError for a column that is not there,
    is null or holds no text or number.

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
        return lambda where, row: _text(field, text, where, row)
    braces = Braces(field, text)
    spelt = set(braces.spelt)

    def fill(where: str, row: Row) -> str:
        for name in spelt & row.keys():
            spelt.discard(name)  # told once
            _log.warning("%s %r writes {%s} as it stands: for the column, do not double the braces", field, text, name)
        return braces.fill(lambda column: _text(field, column, where, row))

    return fill


class _Maker:
    """Makes items of rows."""

    def __init__(self, prompt: str, reference: str | None) -> None:
        self._prompt = template("prompt", prompt)
        self._reference = template("reference", "reference" if reference is None else reference)
        self._may_lack = reference is None

    def items(self, rows: Rows) -> list[Item]:
        """All of them; a column that only some rows have is None in the others."""
        columns = dict.fromkeys(column for _, row in rows for column in row if column not in TAKEN)
        return [self.item(where, row, columns) for where, row in rows]

    def item(self, where: str, row: Row, columns: Mapping[str, Any]) -> Item:
        """One item, whose key is its place."""
        prompt = _encodable("prompt", where, self._prompt(where, row))
        if not prompt.strip():
            raise DataError("prompt", where, "it is empty or white space; fill it in, or leave the row out")
        lacks = self._may_lack and row.get("reference") is None
        reference = "" if lacks else _encodable("reference", where, self._reference(where, row))
        return Item(key=where, prompt=prompt, reference=reference, columns={name: row.get(name) for name in columns})


def _rows(data: Any) -> tuple[Rows | dict[str, Rows], bool]:
    """The rows, by split where there are splits; and whether they were handed over in memory, one by one."""
    if isinstance(data, Mapping):
        splits: dict[str, Rows] = {}
        for split, part in data.items():
            name = SPLITS.get(str(split), str(split))
            rows, _ = _rows(part)
            if isinstance(rows, dict) or name in splits:
                raise DataError("data", split, "give each split once, as a list, a file or a data set")
            splits[name] = [(f"{name}/{where}", row) for where, row in rows]
        if not splits:
            raise DataError("data", data, "give {split: data}")
        return splits, False
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.is_dir():
            return read_folder(path), False
        if not path.exists():
            remedy = (
                "no such file or folder; give one, or a list of strings. What a hub holds is first saved to a folder"
            )
            raise DataError("data", str(data), remedy)
        return read_file(path), False
    if hasattr(data, "column_names") and hasattr(data, "with_format") and hasattr(data, "__len__"):
        return data_set(data, "row"), False
    if not isinstance(data, Sequence) or isinstance(data, bytes):
        raise DataError("data", data, "give a list of strings or of rows, a file, a data set, or a function of rng")
    return [(str(n), _row(str(n), row)) for n, row in enumerate(data)], True


def _row(where: str, given: Any) -> Row:
    if isinstance(given, str):
        return {"prompt": given}
    if not isinstance(given, Mapping):
        raise DataError("data", where, f"it is a {type(given).__name__}; give a string, or {{column: value}}")
    return given


def _drawing(draw: Callable[[random.Random], Any], make: _Maker) -> Callable[[random.Random, str], Item]:
    def drawn(rng: random.Random, key: str) -> Item:
        row = _row(key, draw(rng))
        return make.item(key, row, {name: None for name in row if name not in TAKEN})

    return drawn


def _text(field: str, column: str, where: str, row: Row) -> str:
    if column not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise DataError(field, column, f"{where} has no such column; there are: {there}")
    value = row[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # NaN is what tables make of nothing
        raise DataError(field, column, f"it is null in {where}; fill it in, or leave the row out")
    if isinstance(value, Mapping | bytes) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise DataError(field, column, f"it holds a {type(value).__name__} in {where}; give a column of texts")
    return str(value)


def _encodable(field: str, where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start + 1} is half of a surrogate pair"
        raise DataError(field, where, f"{half} (\\u{ord(text[error.start]):04x}); mend the text") from error
    return text


def _shares(given: Any) -> Mapping[str, range]:
    """Tenths by split.

    Raises: SettingError if they are not three whole numbers that sum to ten.
    """
    if given is None:
        return dict.fromkeys(SHARES, range(10))
    if given == "auto":
        return SHARES
    shares = [share for share in given if type(share) is int and share >= 0] if isinstance(given, Sequence) else []
    if len(shares) != 3 or len(given) != 3 or sum(shares) != 10:
        remedy = (
            "give tenths for train, validation and test that sum to 10, such as [8, 1, 1], or null: every row in each"
        )
        raise SettingError("split_shares", given, remedy)
    ends = [sum(shares[: n + 1]) for n in range(3)]
    return {split: range(end - share, end) for split, share, end in zip(SHARES, shares, ends, strict=True) if share}
