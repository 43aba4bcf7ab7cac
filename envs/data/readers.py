"""Reads rows: JSON Lines, CSV and TSV (each also gzip'd), Parquet, folders that `datasets` saved, streams, a hub.

A file is read as a whole before training, so that whatever is wrong with it is reported at once, with its line. Parquet
needs pyarrow, a data set's folder needs datasets: `rlgkd[data]`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlgkd.envs.data.rows import Row, Rows, as_row
from rlgkd.errors import DataError, DependencyError, one_line
from rlgkd.file_kinds import check_file

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""The word in a file's or a folder's name -> the split."""
MAX_LINE = 64 * 2**20
"""Bytes of a line; a file of one endless line would fill the memory before anything could be said of it."""
MAX_REASON = 200
"""Characters of another library's error message that are shown."""


def read_file(path: Path, name: str = "") -> Rows:
    """Return all rows of a file, whose suffix names its format; their keys begin with `name`, by default the file's.

    Raises: DataError for a file that cannot be read, with its line; DependencyError for Parquet without pyarrow.
    """
    if format_of(path) not in READERS:
        raise _unreadable(str(path), f"give a file that ends in {', '.join(READERS)}, or a folder")
    try:
        check_file(path)
        _check_size(path, path.stat().st_size)
        rows = list(READERS[format_of(path)](path, name or path.name))
    except (OSError, EOFError, zlib.error) as error:  # gzip's own errors are of all three kinds
        reason = getattr(error, "strerror", None) or error
        raise _unreadable(str(path), f"it could not be read: {reason}") from error
    if not rows:
        raise _unreadable(str(path), "it has no rows; give at least one")
    return rows


def format_of(path: Path) -> str:
    """Return the suffix that names a file's format, `.jsonl` or `.jsonl.gz`, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def read_folder(path: Path) -> Rows | dict[str, Rows]:
    """Return the rows of a folder's files, by split if the names say which: `test.csv`, `train-00000-of-2.parquet`.

    Raises: DataError if there is no file to read, or only some are named after a split.
    """
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return _read_saved_dataset(path)
    files = sorted(
        file
        for file in path.rglob("*")
        if format_of(file) in READERS and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise _unreadable(str(path), f"it holds no file that ends in {', '.join(READERS)}")
    splits: dict[str, Rows] = {}
    for file in files:
        name = file.relative_to(path)
        words = re.split(r"[^a-z]+", name.as_posix().lower().removesuffix(format_of(file)))
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")
        splits.setdefault(split, []).extend(read_file(file, name.as_posix()))
    if len(splits) > 1 and "" in splits:
        unnamed = splits[""][0][0].rpartition(":")[0]
        raise _unreadable(
            f"{path}/{unnamed}", "other files there are named train, validation or test; name this one so too"
        )
    return splits.get("", splits)


def dataset_rows(rows: Any, name: str) -> Rows:
    """Return the rows of a `datasets.Dataset`; their keys begin with `name`."""
    return [(f"{name}[{n}]", row) for n, row in enumerate(rows.with_format(None))]


def read_stream(rows: Iterable[Any], max_rows: int | None, name: str) -> Rows:
    """Return the first rows of what can be read once, such as a streaming data set; their keys begin with `name`.

    Raises: DataError without `max_rows`, for a stream may have no end, or if the reading fails.
    """
    if max_rows is None:
        raise _unreadable(name, "it is read as a stream, which may have no end; set max_rows to the rows to read")
    try:
        read = list(islice(rows, max_rows))
    except Exception as error:  # of many kinds: the network's, Arrow's, a function's that is mapped over the rows
        raise _unreadable(name, f"reading it failed: {one_line(error, MAX_REASON)}") from error
    if not read:
        raise _unreadable(name, "it has no rows; give at least one")
    return [(f"{name}[{n}]", as_row(f"{name}[{n}]", row)) for n, row in enumerate(read)]


def read_hub(name: str, subset: str, max_rows: int | None) -> Rows | dict[str, Rows]:
    """Return the rows of the Hugging Face hub's data set `owner/name`; with `max_rows` they are streamed.

    Raises: DataError if the data set cannot be had; DependencyError without datasets.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        remedy = "there is no such file or folder; to read a data set of the hub: pip install 'rlgkd[data]'"
        raise DependencyError("data", name, remedy) from error
    try:
        loaded = load_dataset(name, subset or None, streaming=max_rows is not None)
    except Exception as error:  # of many kinds: the network's, the hub's, the data set's own
        reason = one_line(error, MAX_REASON)
        raise _unreadable(name, f"no such file or folder, and the hub did not give it: {reason}") from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    if max_rows is not None:
        return {str(split): read_stream(rows, max_rows, f"{name}/{split}") for split, rows in splits.items()}
    return {str(split): dataset_rows(rows, f"{name}/{split}") for split, rows in splits.items()}


def _read_saved_dataset(path: Path) -> Rows | dict[str, Rows]:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise DependencyError("data", str(path), "to read it: pip install 'rlgkd[data]'") from error
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # of many kinds: Arrow's, JSON's, the file system's
        raise _unreadable(str(path), f"datasets could not read it: {one_line(error, MAX_REASON)}") from error
    if isinstance(loaded, Dataset):
        return dataset_rows(loaded, path.name)
    return {str(split): dataset_rows(rows, str(split)) for split, rows in loaded.items()}


def _decoded_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, line ends included."""
    with gzip.open(path) if format_of(path).endswith(".gz") else path.open("rb") as file:
        size = 0
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            size += len(line)
            if len(line) > MAX_LINE:
                raise _unreadable(f"{name}:{number}", f"the line has more than {MAX_LINE >> 20} MiB; split it")
            _check_size(path, size)  # of what is unpacked
            if number == 1:  # some programs mark UTF-8 files with it
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}"
                raise _unreadable(f"{name}:{number}", f"{byte}, is not UTF-8; save the file as UTF-8") from error


def _read_json_lines(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    for number, line in _decoded_lines(path, name):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(_unique_keys, where))
        except DataError:  # a ValueError too, which the next clause would hide
            raise
        except (ValueError, RecursionError) as error:
            raise _unreadable(where, f'it is no JSON ({error}); write one {{"column": value}} a line') from error
        if not isinstance(row, dict):
            raise _unreadable(where, f'it holds {_type_name(row)}; write one {{"column": value}} a line')
        yield where, row


def _unique_keys(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with each key once; Python's own parser would keep the last of two silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _unreadable(where, f"key {twice!r} stands there twice; keep one")
    return found


def _read_csv(path: Path, name: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    lines = csv.reader((line for _, line in _decoded_lines(path, name)), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # by default Python stops at 131072 characters
    try:
        yield from list(_csv_rows(lines, name))
    finally:
        csv.field_size_limit(limit)


def _csv_rows(lines: Any, name: str) -> Iterator[tuple[str, Row]]:
    header: list[str] | None = None
    while True:
        where = f"{name}:{lines.line_num + 1}"
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise _unreadable(where, f"the row that begins here is malformed: {error}") from error
        if fields is None:
            return
        if header is None:
            twice = {column for column in fields if fields.count(column) > 1}
            if twice:
                raise _unreadable(where, f"column {min(twice)!r} stands there twice; rename one")
            others = [sign for sign in ";\t" if sign in fields[0]] if len(fields) == 1 else []
            if others:
                other = others[0]
                remedy = "name it .tsv" if other == "\t" else "save it with commas in a .csv, or with tabs in a .tsv"
                raise _unreadable(where, f"its one column is {fields[0]!r}, which holds {other!r}; {remedy}")
            header = fields
        elif len(fields) == len(header):
            yield where, dict(zip(header, fields, strict=True))
        elif fields:  # an empty line is no row
            raise _unreadable(
                where, f"it has {len(fields)} fields, the header {len(header)}; quote a field that holds commas"
            )


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DependencyError("data", str(path), "to read Parquet: pip install 'rlgkd[data]'") from error
    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            twice = {column for column in columns if columns.count(column) > 1}
            if twice:
                raise _unreadable(name, f"column {min(twice)!r} is there twice; rename one")
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(str(path), f"it could not be read as Parquet: {one_line(error, MAX_REASON)}") from error
    yield from ((f"{name}:{n}", row) for n, row in enumerate(rows, 1))


READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": lambda path, name: _read_csv(path, name, ","),
    ".tsv": lambda path, name: _read_csv(path, name, "\t"),
    ".parquet": _read_parquet,
}
"""The suffix of a file -> what reads it."""
READERS |= {f"{suffix}.gz": reader for suffix, reader in READERS.items() if suffix != ".parquet"}


def _check_size(path: Path, size: int) -> None:
    """Raise DataError for more bytes than the machine has memory: rows are read as a whole."""
    if not hasattr(os, "sysconf"):  # on Windows, which has no such question to ask
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        sizes = f"it has {size >> 30} GiB or more, this machine {memory >> 30} GiB of memory"
        remedy = f"{sizes}, and rows are read as a whole: give a part of it, or a streaming data set with max_rows"
        raise _unreadable(str(path), remedy)


def _unreadable(where: str, remedy: str) -> DataError:
    return DataError("data", where, remedy)


def _type_name(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
