"""Rewards by name, by import path, and as sums; a name that does not exist is refused with the nearest one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlgkd.envs import ListItems, TextTask, rewards
from rlgkd.envs.data.items import read_items
from rlgkd.envs.data.sources import Items
from rlgkd.envs.rewards.registry import reward_from, shipped_rewards
from rlgkd.errors import DataError, SettingError
from rlgkd.imports import import_object
from rlgkd.types import Item

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


def test_a_python_file_is_imported_with_the_modules_of_its_folder_and_its_package(tmp_path: Path) -> None:
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
    short = f"{tmp_path / 'parts_of_mine.py'}:short"
    task = make_task(prompts=[{"prompt": "see", "reference": "b"}], reward=["exact", short])
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
        ("rouge", "rouge takes kind: ROUGE F1 .*`rougeL`"),
        ({"name": "exact", "weight": 1}, "weight"),
        ("nowhere:reward", "could not be imported"),
        ("/nowhere/mine.py:reward", "no file /nowhere/mine.py"),
        ("mine.py", "mine.py:FUNCTION"),
        ("../mine:reward", "give an import path"),
        ("mine.py:reward:reward", "give an import path"),
        (".mine:reward", "give an import path"),
        ("rlgkd.envs.rewards.text:NUMBER", "path of a function"),
        (["exact", "exact"], "each once"),
        ({"a": {"weight": 2}}, "which reward"),
        ({"a": {"name": "exact", "weight": "much"}}, "is a finite number"),
        (None, "give a function"),
        ({}, "parts"),
    ],
)
def test_a_reward_that_cannot_be_is_refused_with_what_can(given_: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        reward_from(given_)


def test_the_shipped_rewards_are_those_of_the_package_that_are_not_made_of_others() -> None:
    public = {name: getattr(rewards, name) for name in rewards.__all__}
    assert shipped_rewards() == {name: made for name, made in public.items() if name not in ("Shaped", "Weighted")}


def test_every_reward_of_the_module_is_listed_with_a_line_about_it() -> None:
    own = {name for name, made in vars(rewards).items() if getattr(made, "__module__", None) == rewards.__name__}
    assert {name for name in own if not name.startswith("_")} <= set(rewards.__all__)
    assert all((getattr(rewards, name).__doc__ or "").splitlines()[0] for name in rewards.__all__)


def test_a_module_that_ends_python_when_it_is_imported_is_refused(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(SettingError, match="importing it ended Python"):
        import_object("reward", f"{tmp_path}/ends.py:reward")
