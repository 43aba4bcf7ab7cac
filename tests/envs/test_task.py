"""A task checks its settings and its prompts, and is a `Task`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlgkd.envs import ListItems, TextTask
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.types import Item, Task

MakeTask = Callable[..., TextTask]
TINY: dict[str, Any] = {"prompts": ["see"], "reward": "exact", "tokenizer": "embedded:grounded-student"}


def test_a_text_task_is_a_task(task: TextTask) -> None:
    assert isinstance(task, Task)


def test_a_prompt_too_long_is_an_error_that_names_item_length_and_remedy(make_task: MakeTask) -> None:
    length = len(make_task().tokenizer("dog" * 9)["input_ids"])
    with pytest.raises(DataError) as caught:
        make_task(prompts=["dog" * 9], max_prompt_tokens=4)
    remedy = f"it has {length} tokens; shorten it or raise max_prompt_tokens, now 4"
    assert length > 4 and str(caught.value) == f"prompt: '0' does not work; {remedy}"


def test_a_prompt_of_just_the_limit_fits(make_task: MakeTask) -> None:
    item = Item(key="a", prompt="see a dog")
    ids = make_task(max_prompt_tokens=50).encode_prompt(item)
    assert make_task(prompts=["see a dog"], max_prompt_tokens=len(ids)).encode_prompt(item) == ids


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_prompt_is_refused_by_name(make_task: MakeTask, chat: bool) -> None:
    with pytest.raises(DataError, match="prompt: 'a' does not work; it is empty"):
        make_task(chat=chat).encode_prompt(Item(key="a", prompt=""))


def test_an_empty_list_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(DataError, match="prompts: 'train: 0 items' does not work; give at least one prompt"):
        make_task(prompts=[])
    with pytest.raises(DataError, match="test: 0 items"):
        ListItems({"train": [Item(key="a", prompt="a")], "test": []})


@pytest.mark.parametrize("prompts", ["one string", 7, None, b"bytes", {"a"}])
def test_prompts_that_are_neither_list_nor_data_are_refused(make_task: MakeTask, prompts: object) -> None:
    with pytest.raises(DataError, match="a list of strings"):
        make_task(prompts=prompts)


@pytest.mark.parametrize("field", ["max_new_tokens", "max_prompt_tokens"])
def test_a_limit_below_one_is_refused(make_task: MakeTask, field: str) -> None:
    with pytest.raises(SettingError, match=f"{field}: 0 does not work; give at least 1 token"):
        make_task(**{field: 0})


@pytest.mark.parametrize("odd", ["64", 1.5, 0, 10**11])
def test_a_limit_that_is_no_whole_number_is_refused_by_name(odd: Any) -> None:
    words = r"max_new_tokens: .* give (a whole number|at least 1 token and at most 16,777,216, as a whole number)"
    with pytest.raises(SettingError, match=words):
        TextTask(**TINY, max_new_tokens=odd)


def test_a_tokenizer_without_an_end_token_is_refused(make_task: MakeTask, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="eos_token"):
        make_task(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer))


def test_quality_is_named_as_rewards_are(make_task: MakeTask, tmp_path: Path) -> None:
    """A name, a function of a file, or several under names of their own; what fails is no mean over the others."""
    (tmp_path / "of_texts.py").write_text(
        "def size(completions):\n    return [len(c) for c in completions]\n"
        "def fails(completion):\n    raise KeyError(completion)\n"
    )
    item = Item(key="0", prompt="x", reference="dog")
    of_file = f"{tmp_path}/of_texts.py:size"
    assert make_task(quality=of_file).quality([item], ["dog"]) == [{"size": 3.0}]
    assert make_task(quality="exact").quality([item, item], ["dog", "cat"]) == [{"exact": 1.0}, {"exact": 0.0}]
    several = {"right": "exact", "length": {"name": of_file}, "overlap": {"name": "rouge", "kind": "rouge1"}}
    assert make_task(quality=several).quality([item], ["dog"]) == [{"right": 1.0, "length": 3.0, "overlap": 1.0}]
    assert [*make_task(quality={"name": "rouge", "kind": "rougeL"}).quality([item], ["dog"])[0]] == ["rouge"]
    with pytest.raises(SettingError, match=r"quality: 'fails' does not work; it failed for a text: .*KeyError"):
        make_task(quality=f"{tmp_path}/of_texts.py:fails").quality([item], ["dog"])
    for wrong in ("exactly", {"right": "exactly"}):
        with pytest.raises(SettingError, match="did you mean 'exact'"):
            make_task(quality=wrong)


def test_quality_is_empty_where_there_is_none_and_else_what_its_function_says(make_task: MakeTask) -> None:
    item = Item(key="a", prompt="a")
    assert make_task().quality([item], ["dog"]) == [{}]
    measured = make_task(quality=lambda items, texts: [{"length": float(len(text))} for text in texts])
    assert measured.quality([item], ["dog"]) == [{"length": 3.0}]


@pytest.mark.parametrize(
    "returned", [[], [{"a": 1.0}], None, [1.0, 2.0], [{"a": "x"}] * 2, [{"a": {"b": 1}}] * 2, [{1: 1.0}] * 2]
)
def test_measures_of_quality_are_numbers_by_name_for_each_text(make_task: MakeTask, returned: Any) -> None:
    task = make_task(quality=lambda items, completions: returned)
    items = [task.item("test", 0, 0)] * 2
    with pytest.raises(SettingError, match=r"quality: '<lambda>' does not work; it returned .*return a list with"):
        task.quality(items, ["a", "b"])


def test_half_of_a_surrogate_pair_is_refused_wherever_a_prompt_comes_from(make_task: MakeTask) -> None:
    with pytest.raises(DataError, match="half of a surrogate pair"):
        make_task().encode_prompt(Item(key="a", prompt="see \ud800"))
