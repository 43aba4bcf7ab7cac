"""Prompts from anywhere: what is in a list, a file, a data set or a function is what the items hold, split by split."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
import yaml
from gymnasium.utils import env_checker
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common import env_checker as sb3_checker

from rlgkd.envs import ListItems, TextTask, rewards
from rlgkd.envs.data.items import read_items
from rlgkd.envs.data.procedural import prompt_tenth
from rlgkd.envs.data.rows import template
from rlgkd.envs.data.sources import Items
from rlgkd.envs.registry import takes_tokenizer
from rlgkd.envs.rewards.registry import reward_from, shipped_rewards
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


# Where rows come from


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_file_gives_every_row_once_dealt_out_by_the_hash_of_its_prompt(suffix: str, tmp_path: Path) -> None:
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
        ("rows.csv:2", "two\nlines"), ("rows.csv:5", "after"),
    ]  # fmt: skip


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


def test_a_split_that_no_row_falls_to_is_told_with_what_to_do() -> None:
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


def test_a_folder_whose_files_name_no_split_is_one_heap_dealt_out_by_hash(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:30])
    write(tmp_path / "b.csv", ROWS[30:])
    splits = all_of(read_items(tmp_path, **ASKED))
    assert sum(map(len, splits.values())) == 60 and list(splits) == list(SPLITS)


def test_a_file_beside_named_splits_is_asked_for_its_own(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    write(tmp_path / "more.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl' does not work; other files there are named train"):
        read_items(tmp_path, **ASKED)


def test_splits_are_given_as_a_mapping_too_and_a_lone_train_is_dealt_out(tmp_path: Path) -> None:
    given_ = {"train": str(write(tmp_path / "x.jsonl")), "val": ROWS[:3]}
    splits = all_of(read_items(given_, **ASKED))
    assert {split: len(part) for split, part in splits.items()} == {"train": 60, "validation": 3}
    assert list(all_of(read_items({"train": ROWS}, **ASKED))) == list(SPLITS)
    with pytest.raises(SettingError, match="splits of its own: train, validation"):
        read_items(given_, split_shares=None, **ASKED)
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


def test_a_function_that_draws_too_few_prompts_is_told_and_not_waited_for() -> None:
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


# Templates


def test_a_template_fills_in_columns_and_leaves_doubled_braces_and_a_rows_own_braces() -> None:
    fill = template("prompt", "{{{a b}}} {n}{{n}} {n}")
    assert fill("x:1", {"a b": "{n} {{", "n": 3}) == "{{n} {{} 3{n} 3"


@pytest.mark.parametrize(
    "text", ["{x.__class__}", "{x[0]}", "{x!r}", "{x:>9}", "{}", "{0.real}", "{", "a } b", "{ x}", "{{x}", "{x{y}}", ""]
)
def test_a_template_that_holds_more_than_columns_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="prompt: "):
        template("prompt", text)


@settings(deadline=None, max_examples=50)
@given(name=st.from_regex(r"[a-z][a-z0-9_ -]{0,5}", fullmatch=True), value=st.text(), around=st.text())
def test_whatever_stands_in_a_row_or_around_comes_out_as_it_is(name: str, value: str, around: str) -> None:
    doubled = around.replace("{", "{{").replace("}", "}}")
    assert template("prompt", f"{doubled}{{{name}}}")("x:1", {name: value}) == around + value


def test_a_column_in_doubled_braces_is_pointed_out_once(caplog: pytest.LogCaptureFixture) -> None:
    fill = template("prompt", "{{question}} {{other}} {{{question}}}")
    assert [fill("x:1", {"question": text}) for text in "ab"] == [
        "{question} {other} {a}", "{question} {other} {b}"
    ]  # fmt: skip
    (record,) = caplog.records
    assert "writes {question} as it stands: for the column, do not double the braces" in record.getMessage()


def test_a_template_that_yaml_read_as_a_mapping_is_told_how_to_quote_it_in_a_file_and_on_the_command_line() -> None:
    with pytest.raises(
        SettingError, match=r"""reference: .* 'env_settings\.reference="\{column\}"' on the command line"""
    ):
        template("reference", {"answer": None})


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(
        DataError, match=r"prompt: 'questoin' .*; 0 has no such column; there are: 'question', 'answer'"
    ):
        read_items(ROWS, prompt="{questoin}")


def test_without_a_setting_the_reference_is_the_column_of_that_name_where_there_is_one() -> None:
    items = all_of(read_items([{"prompt": "a", "reference": "b"}, {"prompt": "c"}]))["test"]
    assert [item.reference for item in items] == ["b", ""]
    with pytest.raises(DataError, match=r"reference: 'reference' .* 1 has no such column"):
        read_items([{"prompt": "a", "reference": "b"}, {"prompt": "c"}], reference="reference")


def test_a_column_that_only_some_rows_have_is_none_in_the_others() -> None:
    items = all_of(read_items([{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}]))["test"]
    assert [item.columns for item in items] == [{"x": 1, "y": None}, {"x": None, "y": 2}]


def test_a_column_called_completion_does_not_hide_the_models_from_the_reward(
    make_task: Callable[..., TextTask],
) -> None:
    rows = [{"prompt": "see a dog", "completion": "from the file", "level": 3}]
    seen: list[object] = []

    def reward(completion: str, level: int) -> float:
        seen.extend([completion, level])
        return 0.0

    task = make_task(prompts=rows, reward=reward)
    task.score([task.item("test", 0, 0)], ["the model's"])
    assert seen == ["the model's", 3]


# Rewards by name


def test_every_reward_that_ships_goes_by_its_name_with_its_settings() -> None:
    shipped = set(shipped_rewards())
    assert {"exact", "numeric", "rouge", "bleu", "chrf", "pattern", "length", "served", "judge"} <= shipped
    assert not shipped & {"Weighted", "Shaped"}  # what is made of others is a mapping
    entailment = reward_from({"name": "Entailment", "model": "embedded:grounded-nli"})
    assert entailment(["The dog barked."], [""]) == [0.0]
    assert reward_from("exact")(["5"], ["5"]) == [1.0]
    assert reward_from({"name": "exact", "ignore_case": True})(["A"], ["a"]) == [1.0]
    own = rewards.exact()
    assert reward_from(own) is own


def test_a_reward_by_import_path_takes_settings_as_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(completions: list[str], than: int = 3) -> list[float]:
        return [float(len(text) > than) for text in completions]

    module = ModuleType("somewhere")
    module.longer = longer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    assert reward_from("somewhere:longer")(["abcd"]) == [1.0]
    assert reward_from({"name": "somewhere:longer", "than": 4})(["abcd"]) == [0.0]


def test_a_file_of_python_is_imported_with_what_lies_beside_it_and_in_its_package(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("def same(a, b): return float(a == b)\n")
    (tmp_path / "file_of_mine.py").write_text(
        "from beside_mine import same\n"
        "def right(completion, reference): return same(completion, reference)\n"
        "ROWS = [{'prompt': 'a', 'reference': 'b'}]\n"
    )
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").touch()
    (tmp_path / "package_of_mine" / "inner.py").write_text("from .other import right\n")
    (tmp_path / "package_of_mine" / "other.py").write_text("from file_of_mine import right\n")
    for file in ("file_of_mine.py", "package_of_mine/inner.py"):
        reward = reward_from(f"{tmp_path / file}:right")
        assert [reward("b", "b"), reward("a", "b")] == [1.0, 0.0]
    (item,) = all_of(read_items(f"{tmp_path / 'file_of_mine.py'}:ROWS"))["test"]
    assert (item.prompt, item.reference) == ("a", "b")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file_of_mine.py").write_text("def right(): pass\n")
    with pytest.raises(SettingError, match="another module 'file_of_mine'"):
        reward_from(f"{other / 'file_of_mine.py'}:right")


def test_a_part_of_a_sum_goes_by_its_functions_name(tmp_path: Path, make_task: Callable[..., TextTask]) -> None:
    (tmp_path / "parts_of_mine.py").write_text("def short(completion): return 0.5\n")
    task = make_task(prompts=["see"], reward=["exact", f"{tmp_path / 'parts_of_mine.py'}:short"])
    assert task.score([task.item("test", 0, 0)], ["a"])[0].parts == {"exact": 0.0, "short": 0.5}


@pytest.mark.parametrize(
    "given_",
    [
        ["exact", {"name": "length", "words": 1, "weight": 0.5}],
        {"exact": {"name": "exact"}, "length": {"name": "length", "words": 1, "weight": 0.5}},
        {"exact": "exact", "length": {"name": "length", "words": 1, "weight": 0.5}},
    ],
)
def test_a_list_or_mapping_of_rewards_is_their_weighted_sum(make_task: Callable[..., TextTask], given_: Any) -> None:
    task = make_task(prompts=[{"prompt": "see", "reference": "a"}], reward=given_)
    (score,) = task.score([task.item("test", 0, 0)], ["a"])
    assert score.reward == 1.5 and score.parts == {"exact": 1.0, "length": 1.0}


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ("exat", "did you mean 'exact'"),
        ({"name": "rouge"}, "kind"),
        ({"name": "exact", "ignorecase": 1}, "exact takes ignore_case"),
        ({"name": "exact", "weight": 1}, "weight"),
        ("nowhere:reward", "could not be imported"),
        ("/nowhere/mine.py:reward", "no file /nowhere/mine.py"),
        ("mine.py", "mine.py:FUNCTION"),
        ("rlgkd.envs.rewards.text:NUMBER", "path of a function"),
        (["exact", "exact"], "each once"),
        ({"a": {"weight": 2}}, "which reward"),
        ({"a": {"name": "exact", "weight": "much"}}, "is a number"),
        (None, "give a function"),
        ({}, "parts"),
    ],
)
def test_a_reward_that_cannot_be_is_refused_with_what_can(given_: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        reward_from(given_)


# The registered id


@pytest.mark.parametrize(
    ("env", "takes"),
    [
        ("rlgkd/Dataset-v0", True),
        ("rlgkd/Arithmetic-v0", True),
        ("rlgkd/GroundedSummary-v0", False),
        ("CartPole-v1", False),
        ("nowhere/Nothing-v0", False),
    ],
)
def test_an_environment_says_whether_its_tokenizer_is_to_be_chosen(env: str, takes: bool) -> None:
    assert takes_tokenizer(env) is takes


def test_the_id_can_be_made_and_checked_as_it_is_and_with_data(tmp_path: Path) -> None:
    for given_ in ({}, {"data": str(write(tmp_path / "rows.jsonl")), **ASKED, "reward": "numeric"}):
        env = gym.make("rlgkd/Dataset-v0", max_new_tokens=4, max_prompt_tokens=24, **given_)
        env_checker.check_env(env.unwrapped, skip_render_check=True)
        sb3_checker.check_env(env.unwrapped)
        vector = gym.make_vec("rlgkd/Dataset-v0", num_envs=2, max_new_tokens=4, max_prompt_tokens=24, **given_)
        vector.reset(seed=0)
        assert vector.step(vector.action_space.sample())[1].shape == (2,)
        vector.close()


def test_a_prompt_too_long_is_told_with_its_line_before_anything_else(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "long " * 400, "answer": 1, "level": 0}]
    with pytest.raises(DataError, match=r"prompt: 'rows\.jsonl:61' .* raise max_prompt_tokens"):
        gym.make("rlgkd/Dataset-v0", data=str(write(tmp_path / "rows.jsonl", rows)), **ASKED)


@pytest.mark.slow
def test_a_file_is_trained_on_by_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlgkd.scripts.cli import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "questions.jsonl")
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "env": "rlgkd/Dataset-v0", "tokens": 150, "prompts_per_update": 2, "group_size": 2, "eval_prompts": 2,
                "threads": 1, "student": "embedded:grounded-student", "alpha": 0,
                "env_settings": {
                    "data": "questions.jsonl", "prompt": "Q: {question}\nA:", "reference": "answer",
                    "reward": ["exact", {"name": "length", "words": 2, "weight": 0.5}],
                    "max_prompt_tokens": 32, "max_new_tokens": 8,
                },
            }
        )
    )  # fmt: skip
    main_returns(main, ["train", "mine.yaml", "--out", "run", "--quiet"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert rows and all(row["key"].startswith("questions.jsonl:") for row in rows)
    assert all(set(row["parts"]) == {"exact", "length"} for row in rows)
    trained = [row for row in rows if row["prompt"].startswith("Q: What is ")]
    assert len(trained) == len(rows) and all(prompt_tenth(row["prompt"]) < 8 for row in rows)


def main_returns(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
