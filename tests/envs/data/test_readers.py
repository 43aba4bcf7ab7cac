"""Files with errors, or saved by another program: they are read, or refused with file, line and remedy."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlgkd.envs import TextTask
from rlgkd.envs.data.items import read_items
from rlgkd.errors import DataError, DependencyError, RlgkdError
from rlgkd.types import Item

MILLION = 1_000_000
EMBEDDED = "embedded:grounded-teacher"


def nothing(completions: Sequence[str]) -> list[float]:
    return [0.0 for _ in completions]


def one(data: Any, **asked: Any) -> Item:
    return read_items(data, split_shares=None, **asked).item("test", 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "a.jsonl' does not work; it has no rows"),
        ("a.jsonl", b"\n  \n\n", "it has no rows"),
        ("a.csv", b"prompt,x\n", "it has no rows"),
        ("a.csv", b"", "it has no rows"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b\xff"}\n', r"a.jsonl:2' does not work; byte 14 of the line, 0xff,"),
        ("a.csv", b"prompt\na\n\xe9t\xe9\n", "a.csv:3' does not work; byte 1 of the line, 0xe9, is not UTF-8"),
        ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "a.jsonl:1' does not work; byte 1 of the line, 0xff"),
        ("a.jsonl", b'{"prompt": "a"}\n["b"]\n', "a.jsonl:2' does not work; it holds a list"),
        ("a.jsonl", b'{"prompt": "a"}\nnull\n', "a.jsonl:2' does not work; it holds null"),
        ("a.jsonl", b'[{"prompt": "a"}]', "a.jsonl:1' does not work; it holds a list"),
        ("a.jsonl", b'{"prompt": "a"\n}', "a.jsonl:1' does not work; it is no JSON"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}',
            "a.jsonl:2' does not work; key 'prompt' stands th",
        ),
        (
            "a.csv",
            b"prompt;x\na, b;1\n",
            "a.csv:1' .* its one column is 'prompt;x', which holds ';'; save it with commas",
        ),
        ("a.csv", b"prompt\tx\na\t1\n", r"a.csv:1' .* its one column is .*, which holds .*; name it \.tsv"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1' does not work; it is no JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "a.jsonl:1' does not work; it is no JSON"),
        ("a.csv", b"x,prompt,x\n1,a,2\n", "a.csv:1' does not work; column 'x' stands there twice"),
        ("a.csv", b"prompt,x\na,1\n\nb,2,3\n", "a.csv:4' does not work; it has 3 fields, the header 2"),
        ("a.csv", b'prompt,x\na,1\n"b,2\nc,3\n', "a.csv:3' does not work; the row that begins here is malformed"),
        ("a.csv", b"prompt,x\ra,1\r", "a.csv:1' does not work; the row that begins here is malformed"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', "prompt: 'a.jsonl:2' does not work; it is empty"),
        ("a.jsonl", '{"prompt": " \u3000\\n\\t"}'.encode(), "prompt: 'a.jsonl:1' does not work; it is empty or white"),
        ("a.jsonl", b'{"prompt": null}', "prompt: 'prompt' does not work; it is null in a.jsonl:1"),
        ("a.jsonl", b'{"prompt": NaN}', "it is null in a.jsonl:1"),
        ("a.jsonl", b'{"prompt": ["a"]}', "it holds a list in a.jsonl:1"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', r"prompt: 'a.jsonl:1' .* half of a surrogate pair \(\\ud800\)"),
        ("a.jsonl", b'{"promt": "a"}', "a.jsonl:1 has no such column; there are: 'promt'"),
        ("a.txt", b"a", r"give a file that ends in \.jsonl"),
        ("a.parquet", b"PAR1 is not all of it", "as Parquet"),
    ],
)
def test_an_error_in_a_file_is_reported_with_file_line_and_remedy(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_items(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in (("a.csv", "prompt\na\n"), ("a.jsonl", '{"prompt": "a"}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert one(tmp_path / name).prompt == "a"


def test_folders_that_hold_nothing_to_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match="holds no file that ends in"):
        read_items(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read_items("openai/gsm8k")
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="datasets could not read it"):
        read_items(tmp_path)


def test_without_its_package_a_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "dataset_info.json").write_text("{}")
    for path in (tmp_path / "a.parquet", tmp_path):
        with pytest.raises(DependencyError, match=r"pip install 'rlgkd\[data\]'"):
            read_items(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_of_a_million_characters_is_read_and_reported_by_its_length(name: str, tmp_path: Path) -> None:
    text, limit = "many words " * (MILLION // 11), csv.field_size_limit()
    (tmp_path / name).write_text(json.dumps({"prompt": text}) if name == "a.jsonl" else f"prompt\n{text}\n")
    item = read_items(tmp_path / name, split_shares=None).item("test", 0, 0)
    assert item.prompt == text and csv.field_size_limit() == limit
    with pytest.raises(DataError, match=r"it has 999,999 characters; shorten it or raise max_prompt_tokens") as caught:
        TextTask(prompts=tmp_path / name, reward=nothing, tokenizer=EMBEDDED, split_shares=None)
    assert len(str(caught.value)) < 200


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.csv", "a.tsv"]))
@example(content=b'prompt\n"\x00"\n', name="a.csv")
@example(content=b"\xef\xbb\xbf", name="a.jsonl")
def test_any_bytes_are_items_or_one_error_of_ours(
    content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    try:
        assert one(path).prompt.strip()
    except RlgkdError as error:
        assert "\n" not in str(error)


def test_rows_are_read_where_the_size_of_the_memory_cannot_be_asked(tmp_path, monkeypatch):
    """As on Windows, where `os` has no `sysconf`."""
    monkeypatch.delattr(os, "sysconf")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert read_items(path, split_shares=None).item("test", 0, 0).prompt == "a"
