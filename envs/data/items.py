"""Reads items from a user's data: lists, files, data sets and functions, with their splits.

Splits are those of the data: a mapping {split: data}, a DatasetDict, a folder's files named train, validation, test. A
lone file, data set or function, or a split called train with no other, is divided by the hash of the prompt, eight
tenths to train and one each to validation and test, so that a prompt that occurs twice is in one split. A list in
memory is whole in each.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlgkd.envs.data.mixed import mixed_items
from rlgkd.envs.data.procedural import MAX_DRAWS, SHARES, ProceduralItems, prompt_tenth
from rlgkd.envs.data.readers import (
    READERS,
    SPLIT_NAMES,
    dataset_rows,
    format_of,
    read_file,
    read_folder,
    read_hub,
    read_stream,
)
from rlgkd.envs.data.rows import RowItems, Rows, UnusableRows, as_row
from rlgkd.envs.data.sources import Items, ListItems
from rlgkd.errors import DataError, SettingError
from rlgkd.imports import import_object, is_import_path
from rlgkd.types import Item

Shares = Sequence[int] | Literal["auto"] | None
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""The name of a data set of the Hugging Face hub, unless there is a file or folder of that name."""
_log = logging.getLogger(__name__)


def read_items(
    data: Any,
    *,
    prompt: str = "prompt",
    reference: str | None = None,
    split_shares: Shares = "auto",
    subset: str = "",
    max_rows: int | None = None,
    unusable_rows: str = "refuse",
    tools: bool = False,
    check: Callable[[Item], None] | None = None,
    shares: Mapping[str, int] | None = None,
) -> Items:
    """Return the items that the data holds.

    Args:
        data: A source of items, as it is; a list of strings, of conversations or of rows; a file (.jsonl, .csv, .tsv,
            .parquet, all but the last also as .gz) or a folder of them; a data set of `datasets`, streaming ones
            included, or the folder it was saved to; a mapping of splits to any of these; a function of `rng`, a
            random.Random, that draws a string, a conversation or a row; an import path of one of these,
            `package.module:name`; or, if there is no such folder, a data set of the Hugging Face hub, `owner/name`.
        prompt: Column or template (see rlgkd.envs.data.rows).
        reference: Column or template; None takes the column `reference` if there is one.
        split_shares: Tenths of all prompts for train, validation and test, (8, 1, 1) for a lone file, data set or
            function; None gives every row to each split, which is the default for a list in memory.
        subset: Configuration of a data set of the hub that has several.
        max_rows: Rows that are read of each split. A stream needs it, and of the hub no more is then downloaded.
        unusable_rows: `refuse` raises one error for all rows that cannot be used (a column that is missing, what
            `check` refuses); `drop` leaves them out and logs how many.
        tools: Whether a column `tools` holds the schemas of tools.
        check: Raises a DataError for an item that cannot be used.
        shares: The data is then a mapping of names to any of these, and of each so many items follow one another, again
            and again: {math: 2, code: 1}. The column `source` has the name, unless the data has one.

    Raises: SettingError for a malformed template; DataError for data that cannot be read, with its file and line.
    """
    if shares is not None:
        each: dict[str, Any] = {
            "prompt": prompt,
            "reference": reference,
            "split_shares": split_shares,
            "subset": subset,
        }
        each |= {"max_rows": max_rows, "unusable_rows": unusable_rows, "tools": tools, "check": check}
        return mixed_items(data, shares, lambda one: read_items(one, **each))
    tenths = _split_tenths(split_shares)
    if max_rows is not None and (type(max_rows) is not int or max_rows < 1):
        raise SettingError("max_rows", max_rows, "give 1 or more, or null: all rows")
    unusable = UnusableRows(unusable_rows)
    if isinstance(data, Items) and callable(data.size):  # arrays have `item` and `size` too, but a size is no method
        if (prompt, reference, split_shares) != ("prompt", None, "auto"):
            raise SettingError("prompt", prompt, "a source of items has prompts and splits of its own; leave it out")
        return _checked(data, check, unusable) if isinstance(data, ListItems) and check else data
    if isinstance(data, str) and is_import_path(data) and not os.path.exists(data):
        data = import_object("data", data)
        if isinstance(data, Items) and callable(data.size):
            return read_items(data, unusable_rows=unusable_rows, check=check)
    row_items = RowItems(prompt, reference, tools=tools, check=check, unusable=unusable)
    if callable(data):
        if subset:
            raise _no_subsets(subset)
        if max_rows is not None:
            raise SettingError("max_rows", max_rows, "a function draws rows without end; leave it out")
        return ProceduralItems("data", _draw_item(data, row_items), tenths)
    items = _split_items(data, row_items, tenths, split_shares, subset=subset, max_rows=max_rows)
    unusable.settle()
    return items


def _checked(source: ListItems, check: Callable[[Item], None], unusable: UnusableRows) -> ListItems:
    """A source with only those of its items that can be used."""

    def usable(item: Item) -> Item:
        check(item)
        return item

    found = source.filtered(lambda item: unusable.usable(item.key, lambda: usable(item)) is not None)
    unusable.settle()
    return found if unusable.errors else source


def _split_items(
    data: Any,
    row_items: RowItems,
    shares: Mapping[str, range],
    split_shares: Shares,
    *,
    subset: str,
    max_rows: int | None,
) -> ListItems:
    """The items of rows, in the splits of the data or in those that its prompts' hashes belong to."""
    rows, in_memory = _read_rows(data, subset, max_rows)
    if isinstance(rows, dict) and set(rows) != {"train"}:
        if split_shares not in ("auto", None):
            remedy = f"the data has splits of its own ({', '.join(rows)}); leave split_shares at auto"
            raise SettingError("split_shares", split_shares, remedy)
        return _kept({split: row_items.items(part) for split, part in rows.items()}, row_items.unusable)
    items = row_items.items(rows["train"] if isinstance(rows, dict) else rows)
    if split_shares is None or (in_memory and split_shares == "auto"):
        return _kept(dict.fromkeys(SHARES, items), row_items.unusable)
    return _divided(items, shares)


def _kept(splits: Mapping[str, Sequence[Item]], unusable: UnusableRows) -> ListItems:
    """The splits, without those that have lost all their rows; whether any is left, `UnusableRows.settle` says."""
    return ListItems({split: items for split, items in splits.items() if items or not unusable.errors})


def _divided(items: Sequence[Item], shares: Mapping[str, range]) -> ListItems:
    """The items, each in the split that its prompt's hash belongs to; a split without items does not exist."""
    splits = {
        split: [item for item in items if prompt_tenth(item.prompt) in tenths] for split, tenths in shares.items()
    }
    advice = (
        f"; {len(items)} rows were dealt out by hash: give a file for the split, or split_shares: null (None in Python)"
    )
    return ListItems({split: part for split, part in splits.items() if part}, advice=advice)


def _draw_item(draw: Callable[[random.Random], Any], row_items: RowItems) -> Callable[[random.Random, str], Item]:
    def item(rng: random.Random, key: str) -> Item:
        for _ in range(MAX_DRAWS):
            try:
                return row_items.item(key, as_row(key, draw(rng)))
            except DataError as error:
                if row_items.unusable.action == "refuse":
                    raise
                if not row_items.unusable.errors:
                    _log.warning("rows that cannot be used are drawn again; the first: %s", error)
                    row_items.unusable.errors.append((key, error))
        raise row_items.unusable.errors[0][1]

    return item


def _read_rows(data: Any, subset: str, max_rows: int | None) -> tuple[Rows | dict[str, Rows], bool]:
    """The rows, by split if there are splits; and whether they are a list in memory."""
    rows, in_memory = _read_all_rows(data, subset, max_rows)
    if isinstance(rows, dict):
        return {split: part[:max_rows] for split, part in rows.items()}, in_memory
    return rows[:max_rows], in_memory


def _read_all_rows(data: Any, subset: str, max_rows: int | None) -> tuple[Rows | dict[str, Rows], bool]:
    if isinstance(data, str | Path):
        return _read_path(data, subset, max_rows), False
    if subset:
        raise _no_subsets(subset)
    if isinstance(data, Mapping):
        return _read_splits(data, max_rows), False
    if hasattr(data, "column_names") and hasattr(data, "with_format"):
        if hasattr(data, "__len__"):
            return dataset_rows(data, "row"), False
        return read_stream(data.with_format(None), max_rows, "row"), False
    if isinstance(data, Iterator):
        return read_stream(data, max_rows, "row"), True
    if not isinstance(data, Sequence) or isinstance(data, bytes):
        raise DataError("data", data, "give a list of strings or of rows, a file, a data set, or a function of rng")
    return [(str(n), as_row(str(n), row)) for n, row in enumerate(data)], True


def _read_splits(data: Mapping[Any, Any], max_rows: int | None) -> dict[str, Rows]:
    splits: dict[str, Rows] = {}
    for split, part in data.items():
        name = SPLIT_NAMES.get(str(split), str(split))
        rows, _ = _read_rows(part, "", max_rows)
        if isinstance(rows, dict) or name in splits:
            raise DataError("data", split, "give each split once, as a list, a file or a data set")
        splits[name] = [(f"{name}/{key}", row) for key, row in rows]
    if not splits:
        raise DataError("data", data, "give {split: data}")
    return splits


def _read_path(data: str | Path, subset: str, max_rows: int | None) -> Rows | dict[str, Rows]:
    path = Path(data).expanduser()
    exists = os.path.exists(path)  # which is False for a name that no file can have, where Path.exists raises
    if not exists and HUB_NAME.fullmatch(str(data)) and format_of(path) not in READERS:
        return read_hub(str(data), subset, max_rows)
    if subset:
        raise _no_subsets(subset)
    if os.path.isdir(path):
        return read_folder(path)
    if not exists:
        remedy = "no such file or folder; give one, a data set of the hub (owner/name), or a list of strings"
        raise DataError("data", str(data), remedy)
    return read_file(path)


def _no_subsets(subset: str) -> SettingError:
    return SettingError("subset", subset, "only a data set of the hub, owner/name, has subsets; leave it out")


def _split_tenths(given: Any) -> Mapping[str, range]:
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
