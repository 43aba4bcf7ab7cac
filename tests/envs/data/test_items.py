"""Prompts from anywhere: what is in a list, a file, a data set or a function is what the items hold, split by split."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.envs import ListItems
from rlgkd.envs.data.items import read_items
from rlgkd.envs.data.procedural import prompt_tenth
from rlgkd.envs.data.sources import Items
from rlgkd.errors import DataError, SettingError
from rlgkd.types import Item

ROWS = [{"question": f"What is {n} + {n}?", "answer": 2 * n, "level": n % 3} for n in range(60)]
ASKED: dict[str, Any] = {"prompt": "Q: {question}\nA:", "reference": "answer"}
SPLITS = ("train", "validation", "test")


def all_of(items: Items) -> dict[str, list[Item]]:
    """Every item of each split that there is, in the order of validation and test."""
    assert isinstance(items, ListItems)
    return {split: [items.item(split, 0, n) for n in range(items.size(split))] for split in SPLITS if has(items, split)}


def has(items: Items, split: str) -> bool:
    try:
        return items.size(split) > 0
    except DataError:
        return False


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_file_gives_every_row_once_in_the_split_of_its_prompts_hash(suffix: str, tmp_path: Path) -> None:
    splits = all_of(read_items(str(write(tmp_path / f"rows{suffix}")), **ASKED))
    assert list(splits) == list(SPLITS)
    got = sorted((item.prompt, item.reference, str(item.columns["level"])) for part in splits.values() for item in part)
    assert got == sorted((f"Q: {r['question']}\nA:", str(r["answer"]), str(r["level"])) for r in ROWS)
    tenths = {"train": range(8), "validation": [8], "test": [9]}
    assert all(prompt_tenth(item.prompt) in tenths[split] for split, part in splits.items() for item in part)


def test_an_items_key_is_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,x\n"two\nlines",1\n\nafter,2\n')
    items = read_items(tmp_path / "rows.csv", split_shares=None)
    assert [(item.key, item.prompt) for item in all_of(items)["test"]] == [
        ("rows.csv:2", "two\nlines"),
        ("rows.csv:5", "after"),
    ]


def test_a_list_is_whole_in_each_split_and_strings_are_rows_of_one_column() -> None:
    splits = all_of(read_items(["one", "two"], prompt="{prompt}!"))
    assert list(splits) == list(SPLITS)
    assert all({item.prompt for item in part} == {"one!", "two!"} for part in splits.values())
    assert all_of(read_items(ROWS, **ASKED))["test"][3].columns == {
        "question": "What is 3 + 3?",
        "answer": 6,
        "level": 0,
    }


@settings(deadline=None, max_examples=30)
@given(prompts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3).filter(str.strip), min_size=1))
def test_a_prompt_that_occurs_twice_is_in_one_split(prompts: list[str]) -> None:
    items = read_items([*prompts, *prompts[::-1]], split_shares=(5, 3, 2))
    splits = {split: {item.prompt for item in part} for split, part in all_of(items).items()}
    assert sum(map(len, splits.values())) == len(set(prompts)) and set().union(*splits.values()) == set(prompts)


def test_shares_are_tenths_of_the_prompts() -> None:
    rows = [f"prompt {n}" for n in range(3000)]
    splits = all_of(read_items(rows, split_shares=[6, 0, 4]))
    assert list(splits) == ["train", "test"]
    assert 0.56 < len(splits["train"]) / 3000 < 0.64  # 4 standard deviations and the 256 values of a byte


def test_a_split_without_rows_is_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"split: 'test' .*1 rows were dealt out by hash: .*split_shares: null"):
        read_items(["one"], split_shares=(10, 0, 0)).size("test")


@pytest.mark.parametrize("shares", [(8, 1), (8, 1, 2), (8, 1, 0.5), (11, -1, 0), 8, "811", {"train": 8}])
def test_shares_that_are_no_tenths_are_refused(shares: Any) -> None:
    for data in (["a"], "/no/such/file.csv", {"train": ["a"], "test": ["b"]}):  # whatever the data, and before it
        with pytest.raises(SettingError, match=r"split_shares: .*give tenths .* such as \[8, 1, 1\], or null"):
            read_items(data, split_shares=shares)


def test_a_folders_files_are_the_splits_that_they_are_named_after(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00002.jsonl", ROWS[:20])
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", ROWS[20:50])
    write(tmp_path / "data" / "dev.csv", ROWS[50:55])
    write(tmp_path / "data" / "test.tsv", ROWS[55:])
    (tmp_path / "README.md").write_text("about")
    splits = all_of(read_items(tmp_path, **ASKED))
    assert {split: len(part) for split, part in splits.items()} == {"train": 50, "validation": 5, "test": 5}
    assert splits["validation"][0].key == "data/dev.csv:2"


def test_a_folder_whose_files_name_no_split_is_divided_by_hash(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:30])
    write(tmp_path / "b.csv", ROWS[30:])
    splits = all_of(read_items(tmp_path, **ASKED))
    assert sum(map(len, splits.values())) == 60 and list(splits) == list(SPLITS)


def test_a_file_in_a_folder_of_named_splits_must_be_named_too(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    write(tmp_path / "more.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl' does not work; other files there are named train"):
        read_items(tmp_path, **ASKED)


def test_splits_may_be_a_mapping_and_a_lone_train_is_divided(tmp_path: Path) -> None:
    given_ = {"train": str(write(tmp_path / "x.jsonl")), "val": ROWS[:3]}
    splits = all_of(read_items(given_, **ASKED))
    assert {split: len(part) for split, part in splits.items()} == {"train": 60, "validation": 3}
    assert list(all_of(read_items({"train": ROWS}, **ASKED))) == list(SPLITS)
    with pytest.raises(SettingError, match=r"splits of its own .*train, validation"):
        read_items(given_, split_shares=(8, 1, 1), **ASKED)
    assert all_of(read_items(given_, split_shares=None, **ASKED)) == splits
    with pytest.raises(DataError, match="give each split once"):
        read_items({"val": ROWS, "dev": ROWS}, **ASKED)


def test_a_data_set_of_hugging_faces_is_read_as_it_is_and_from_where_it_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:50]), test=datasets.Dataset.from_list(ROWS[50:]))
    made.save_to_disk(tmp_path / "dict")
    made["test"].save_to_disk(tmp_path / "one")
    for source in (made, tmp_path / "dict"):
        splits = all_of(read_items(source, **ASKED))
        assert [item.reference for item in splits["test"]] == [str(row["answer"]) for row in ROWS[50:]]
        assert len(splits["train"]) == 50 and list(splits) == ["train", "test"]
    for source in (made["test"], tmp_path / "one"):
        assert len(all_of(read_items(source, split_shares=None, **ASKED))["test"]) == 10


def test_a_function_draws_items_that_depend_on_split_seed_and_index_alone_and_share_no_prompt() -> None:
    def sums(rng: random.Random) -> dict[str, object]:
        a, b = rng.randrange(30), rng.randrange(30)
        return {"question": f"{a} + {b}", "answer": a + b}

    items, again = (read_items(sums, **ASKED) for _ in range(2))
    drawn = {split: [items.item(split, 3, n) for n in range(200)] for split in SPLITS}
    assert drawn["test"][7] == again.item("test", 3, 7) != again.item("test", 4, 7)
    prompts = [{item.prompt for item in part} for part in drawn.values()]
    assert not any(a & b for n, a in enumerate(prompts) for b in prompts[:n])
    a, b = drawn["train"][0].columns["question"].split(" + ")  # type: ignore[attr-defined]
    assert drawn["train"][0].reference == str(int(a) + int(b))


def test_a_function_that_draws_too_few_prompts_is_refused_and_not_waited_for() -> None:
    split = next(s for s, tenths in {"train": range(8), "test": [9]}.items() if prompt_tenth("same") not in tenths)
    with pytest.raises(DataError, match="none of 2000 prompts"):
        read_items(lambda rng: "same").item(split, 0, 0)
    assert read_items(lambda rng: "same", split_shares=None).item(split, 0, 0).prompt == "same"


def test_an_import_path_names_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somewhere")
    module.rows = ROWS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    assert read_items("somewhere:rows", **ASKED).size("test") == 60
    with pytest.raises(SettingError, match="data: 'somewhere:cows' does not work; it could not be imported"):
        read_items("somewhere:cows")


def test_settings_that_a_source_of_items_would_ignore_are_refused() -> None:
    source = ListItems({"train": [Item(key="a", prompt="a")]})
    assert read_items(source) is source
    with pytest.raises(SettingError, match="has prompts and splits of its own"):
        read_items(source, prompt="{question}")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_may_be_compressed_by_gzip(suffix: str, tmp_path: Path) -> None:
    plain = write(tmp_path / f"test{suffix}", ROWS[:9])
    (tmp_path / "zipped").mkdir()
    zipped = tmp_path / "zipped" / f"test{suffix}.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    prompts = [item.prompt for item in all_of(read_items(plain, split_shares=None, **ASKED))["test"]]
    assert [item.prompt for item in all_of(read_items(zipped, split_shares=None, **ASKED))["test"]] == prompts
    assert read_items(tmp_path / "zipped", **ASKED).size("test") == 9  # named after its split
    for damaged in (b"no gzip", zipped.read_bytes()[:-20]):
        zipped.write_bytes(damaged)
        with pytest.raises(DataError, match=r"\.gz' does not work; it could not be read"):
            read_items(zipped, **ASKED)


def test_a_stream_is_read_to_as_many_rows_as_are_wanted() -> None:
    datasets = pytest.importorskip("datasets")
    taken = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in ROWS:
            taken.append(row)
            yield row

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(DataError, match="it is read as a stream, which may have no end; set max_rows"):
        read_items(stream, **ASKED)
    assert not taken
    assert read_items(stream, split_shares=None, max_rows=5, **ASKED).size("test") == 5 and len(taken) == 5
    assert read_items(rows(), max_rows=7, **ASKED).size("test") == 7
    assert read_items(ROWS, max_rows=3, **ASKED).size("train") == 3
    with pytest.raises(SettingError, match="max_rows: 0 does not work; give 1 or more"):
        read_items(ROWS, max_rows=0, **ASKED)
    with pytest.raises(SettingError, match="a function draws rows without end"):
        read_items(lambda rng: "a", max_rows=3)


def test_a_data_set_of_the_hub_is_loaded_by_its_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, streaming: bool) -> Any:
        asked.append((name, subset, streaming))
        if name == "no/where":
            raise RuntimeError("not\nfound")
        made = datasets.Dataset.from_list(ROWS)
        return {"train": made.to_iterable_dataset()} if streaming else datasets.DatasetDict(train=made, test=made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert read_items("some/sums", subset="main", **ASKED).size("test") == 60
    assert read_items("some/sums", max_rows=4, split_shares=None, **ASKED).size("train") == 4
    assert asked == [("some/sums", "main", False), ("some/sums", None, True)]
    with pytest.raises(DataError, match="no such file or folder, and the hub did not give it: not found"):
        read_items("no/where")
    asked.clear()
    (tmp_path / "some" / "sums").mkdir(parents=True)
    write(tmp_path / "some" / "sums" / "test.csv")
    assert read_items("some/sums", **ASKED).size("test") == 60 and not asked
    with pytest.raises(DataError, match="no such file or folder"):
        read_items("some/sums.csv", **ASKED)
    assert not asked


def test_a_name_that_no_file_can_have_is_refused_as_a_missing_one() -> None:
    with pytest.raises(DataError, match=r"data: .*no such file or folder"):
        read_items("x" * 5000 + ".jsonl")


@pytest.mark.parametrize("data", [["a"], {"train": ["a"]}, lambda rng: "a"])
def test_a_subset_of_what_has_none_is_refused(data: Any) -> None:
    with pytest.raises(SettingError, match=r"subset: 'x' .*leave it out"):
        read_items(data, subset="x")
