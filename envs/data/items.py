"""Reads items from a user's data: lists, files, data sets and functions, with their splits.

Splits are those of the data: a mapping {split: data}, a DatasetDict, a folder's files named train, validation, test. A
lone file, data set or function, or a split called train with no other, is divided by the hash of the prompt, eight
tenths to train and one each to validation and test, so that a prompt that occurs twice is in one split. A list in
memory is whole in each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlgkd.envs.data.procedural import SHARES, ProceduralItems, prompt_tenth
from rlgkd.envs.data.readers import SPLIT_NAMES, dataset_rows, read_file, read_folder
from rlgkd.envs.data.rows import RowItems, Rows, as_row
from rlgkd.envs.data.sources import Items, ListItems
from rlgkd.errors import DataError, SettingError
from rlgkd.imports import import_object, is_import_path
from rlgkd.types import Item

Shares = Sequence[int] | Literal["auto"] | None


def read_items(
    data: Any, *, prompt: str = "prompt", reference: str | None = None, split_shares: Shares = "auto"
) -> Items:
    """Return the items that the data holds.

    Args:
        data: A source of items, as it is; a list of strings or of rows; a file (.jsonl, .csv, .tsv, .parquet) or a
            folder of them; a `datasets` Dataset or DatasetDict, or the folder it was saved to; a mapping of splits to
            any of these; a function of `rng`, a random.Random, that draws a string or a row; or an import path of one
            of these, `package.module:name`.
        prompt: Column or template (see rlgkd.envs.data.rows).
        reference: Column or template; None takes the column `reference` if there is one.
        split_shares: Tenths of all prompts for train, validation and test, (8, 1, 1) for a lone file, data set or
            function; None gives every row to each split, which is the default for a list in memory.

    Raises: SettingError for a malformed template; DataError for data that cannot be read, with its file and line.
    """
    shares = _split_tenths(split_shares)
    if isinstance(data, Items) and callable(data.size):  # arrays have `item` and `size` too, but a size is no method
        if (prompt, reference, split_shares) != ("prompt", None, "auto"):
            raise SettingError("prompt", prompt, "a source of items has prompts and splits of its own; leave it out")
        return data
    if isinstance(data, str) and is_import_path(data) and not Path(data).exists():
        named = import_object("data", data)
        return read_items(named, prompt=prompt, reference=reference, split_shares=split_shares)
    row_items = RowItems(prompt, reference)
    if callable(data):
        return ProceduralItems("data", _draw_item(data, row_items), shares)
    rows, in_memory = _read_rows(data)
    if isinstance(rows, dict) and set(rows) != {"train"}:
        if split_shares != "auto":
            raise SettingError("split_shares", split_shares, f"the data has splits of its own: {', '.join(rows)}")
        return ListItems({split: row_items.items(part) for split, part in rows.items()})
    items = row_items.items(rows["train"] if isinstance(rows, dict) else rows)
    if split_shares is None or (in_memory and split_shares == "auto"):
        return ListItems(dict.fromkeys(SHARES, items))
    return _divided(items, shares)


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
    return lambda rng, key: row_items.item(key, as_row(key, draw(rng)))


def _read_rows(data: Any) -> tuple[Rows | dict[str, Rows], bool]:
    """The rows, by split if there are splits; and whether they are a list in memory."""
    if isinstance(data, Mapping):
        return _read_splits(data), False
    if isinstance(data, str | Path):
        return _read_path(data), False
    if hasattr(data, "column_names") and hasattr(data, "with_format") and hasattr(data, "__len__"):
        return dataset_rows(data, "row"), False
    if not isinstance(data, Sequence) or isinstance(data, bytes):
        raise DataError("data", data, "give a list of strings or of rows, a file, a data set, or a function of rng")
    return [(str(n), as_row(str(n), row)) for n, row in enumerate(data)], True


def _read_splits(data: Mapping[Any, Any]) -> dict[str, Rows]:
    splits: dict[str, Rows] = {}
    for split, part in data.items():
        name = SPLIT_NAMES.get(str(split), str(split))
        rows, _ = _read_rows(part)
        if isinstance(rows, dict) or name in splits:
            raise DataError("data", split, "give each split once, as a list, a file or a data set")
        splits[name] = [(f"{name}/{key}", row) for key, row in rows]
    if not splits:
        raise DataError("data", data, "give {split: data}")
    return splits


def _read_path(data: str | Path) -> Rows | dict[str, Rows]:
    path = Path(data).expanduser()
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        remedy = "no such file or folder; give one, or a list of strings. What a hub holds is first saved to a folder"
        raise DataError("data", str(data), remedy)
    return read_file(path)


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
