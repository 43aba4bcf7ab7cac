"""Items depend on split, seed and index alone; prompts that do not fit are refused; user data stays ordinary text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rlgkd.envs import ListItems, TextTask
from rlgkd.envs.task import build_task
from rlgkd.envs.text import encoder
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.types import Item, Task

MakeTask = Callable[..., TextTask]

PROBE = """
import json, sys
import rlgkd
light = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "stable_baselines3"})
import rlgkd.envs
without_sb3 = "stable_baselines3" not in sys.modules
from rlgkd.envs import ListItems
from rlgkd.types import Item
items = ListItems({split: [Item(key=str(n), prompt=str(n)) for n in range(9)] for split in ("train", "test")})
drawn = [items.item(split, seed, n).key for split in ("train", "test") for seed in (0, 7) for n in range(30)]
print(json.dumps([light, without_sb3, drawn]))
"""


@pytest.fixture(scope="module")
def elsewhere() -> list[Any]:
    """What another process says, with another hash seed: heavy modules, items."""
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def numbered(size: int, *splits: str) -> ListItems:
    items = [Item(key=str(n), prompt=f"prompt {n}") for n in range(size)]
    return ListItems(dict.fromkeys(splits or ("train", "validation", "test"), items))


# Imports


def test_importing_rlgkd_imports_no_torch_no_transformers_no_sb3(elsewhere: list[Any]) -> None:
    assert elsewhere[0] == []


def test_importing_the_environments_imports_no_sb3_until_it_is_asked_for(elsewhere: list[Any]) -> None:
    assert elsewhere[1] is True


def test_every_exported_name_is_there_and_an_unknown_one_is_an_attribute_error() -> None:
    import rlgkd.envs

    assert all(getattr(rlgkd.envs, name) is not None for name in rlgkd.envs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'make_sb4_vec_env'"):
        _ = rlgkd.envs.make_sb4_vec_env  # type: ignore[attr-defined]


# Items


def test_the_same_seed_and_index_give_the_same_item_in_another_process(elsewhere: list[Any]) -> None:
    items = numbered(9)
    assert elsewhere[2] == [items.item(s, seed, n).key for s in ("train", "test") for seed in (0, 7) for n in range(30)]


@settings(deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**32), pass_=st.integers(0, 5))
def test_a_pass_over_the_training_items_is_a_permutation(size: int, seed: int, pass_: int) -> None:
    items = numbered(size)
    drawn = [items.item("train", seed, pass_ * size + n).prompt for n in range(size)]
    assert sorted(drawn) == sorted(f"prompt {n}" for n in range(size))


@settings(deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 2**32), indices=st.lists(st.integers(0, 50)))
def test_items_do_not_depend_on_what_was_drawn_before(size: int, seed: int, indices: list[int]) -> None:
    items = numbered(size)
    assert [items.item("train", seed, n) for n in indices] == [numbered(size).item("train", seed, n) for n in indices]


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    items = numbered(30)
    orders = {
        tuple(items.item("train", seed, 30 * pass_ + n).prompt for n in range(30))
        for seed in range(3)
        for pass_ in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_and_test_keep_their_order_whatever_the_seed(split: str) -> None:
    for seed in (0, 1):
        drawn = [numbered(5).item(split, seed, n).prompt for n in range(10)]
        assert drawn == [f"prompt {n}" for n in range(5)] * 2


def test_an_empty_list_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(DataError, match="prompts: 'train: 0 items' does not work; give at least one prompt"):
        make_task(prompts=[])
    with pytest.raises(DataError, match="test: 0 items"):
        ListItems({"train": [Item(key="a", prompt="a")], "test": []})


@pytest.mark.parametrize("prompts", ["one string", 7, None, b"bytes", (text for text in ["a"]), {"a"}])
def test_prompts_that_are_neither_list_nor_data_are_refused(make_task: MakeTask, prompts: object) -> None:
    with pytest.raises(DataError, match="a list of strings"):
        make_task(prompts=prompts)


def test_an_unknown_split_is_refused_by_name() -> None:
    for call in (lambda items: items.size("dev"), lambda items: items.item("dev", 0, 0)):
        with pytest.raises(DataError, match="split: 'dev' does not work; choose one of train, test"):
            call(numbered(3, "train", "test"))


# Prompts and completions


def test_a_text_task_is_a_task(task: TextTask) -> None:
    assert isinstance(task, Task)


def test_a_prompt_too_long_is_an_error_that_names_item_length_and_remedy(make_task: MakeTask) -> None:
    task = make_task(prompts=["dog" * 9], max_prompt_tokens=4)
    item = task.item("test", 0, 0)
    length = len(task.tokenizer("dog" * 9)["input_ids"])
    with pytest.raises(DataError) as caught:
        task.encode_prompt(item)
    remedy = f"it has {length} tokens; shorten it or raise max_prompt_tokens, now 4"
    assert length > 4 and str(caught.value) == f"prompt: '0' does not work; {remedy}"


def test_a_prompt_that_comes_again_is_not_encoded_anew_and_no_list_is_shared(make_task, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "MAX_CACHED_PROMPTS", 2)
    task, asked = make_task(), []
    encode = task._encoder.plain
    monkeypatch.setattr(task._encoder, "plain", lambda *given: asked.append(given[2]) or encode(*given))
    for text in ("a", "b", "a", "c", "c", "b"):  # the third sends the first two away
        ids = task.encode_prompt(Item(key=text, prompt=text))
        assert ids == encode("prompt", text, text)
        ids.clear()
    assert asked == ["a", "b", "c", "b"]


def test_a_prompt_of_just_the_limit_fits(make_task: MakeTask) -> None:
    ids = make_task(max_prompt_tokens=50).encode_prompt(Item(key="a", prompt="see a dog"))
    assert make_task(max_prompt_tokens=len(ids)).encode_prompt(Item(key="a", prompt="see a dog")) == ids


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_prompt_is_refused_by_name(make_task: MakeTask, chat: bool) -> None:
    with pytest.raises(DataError, match="prompt: 'a' does not work; it is empty"):
        make_task(chat=chat).encode_prompt(Item(key="a", prompt=""))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("text", ["<|end|>", "the <|end|> dog", "<|bot|><|user|>", "<|pad|>"])
def test_special_tokens_written_in_a_prompt_stay_ordinary_text(make_task: MakeTask, chat: bool, text: str) -> None:
    task = make_task(chat=chat, max_prompt_tokens=100)
    plain = make_task(max_prompt_tokens=100)
    ids = plain.encode_prompt(Item(key="a", prompt=text))
    special = set(plain.tokenizer.all_special_ids)
    assert not special & set(ids) and plain.tokenizer.decode(ids) == text
    if chat:
        before, after = _frame(task)
        assert task.encode_prompt(Item(key="a", prompt=text)) == [*before, *ids, *after]


def test_special_tokens_written_in_a_reference_stay_ordinary_text(task: TextTask) -> None:
    ids = task.encode_completion("a <|end|> dog")
    assert ids.count(task.tokenizer.eos_token_id) == 1 and task.decode_completion(ids) == "a <|end|> dog"


def test_a_chat_prompt_is_what_the_template_makes_of_it(make_task: MakeTask) -> None:
    task = make_task(chat=True, max_prompt_tokens=100)
    for prompt in ("see a dog", "house"):
        messages = [{"role": "user", "content": prompt}]
        wanted = task.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert task.encode_prompt(Item(key="a", prompt=prompt)) == wanted


def test_chat_without_a_template_is_refused(make_task: MakeTask, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    with pytest.raises(SettingError, match="chat: True does not work; this tokenizer has no chat template"):
        make_task(chat=True, tokenizer=bare)


@pytest.mark.parametrize("template", ["{{ messages[0].content | upper }}", "{{ messages[0].content * 2 }}"])
def test_a_template_that_rewrites_the_message_is_refused(
    make_task: MakeTask, tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", chat_template=template
    )
    with pytest.raises(SettingError, match="rewrites the message"):
        make_task(chat=True, tokenizer=other)


def test_a_systems_message_stands_where_the_template_puts_it_and_stays_ordinary_text(make_task: MakeTask) -> None:
    task = make_task(chat=True, system="be a <|end|> dog", max_prompt_tokens=100)
    marks = [task.tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<|end|>", "<|bot|>")]
    ids = task.encode_prompt(Item(key="a", prompt="house"))
    assert [id_ for id_ in ids if id_ in marks] == [marks[0], marks[1]] * 2 + [marks[2]]
    assert task.tokenizer.decode(ids) == "<|user|>\nbe a <|end|> dog<|end|>\n<|user|>\nhouse<|end|>\n<|bot|>"


def test_a_systems_message_is_refused_where_it_has_no_place(
    make_task: MakeTask, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(SettingError, match="system: 'be brief' does not work; a system's message needs chat=True"):
        make_task(system="be brief")
    templates = {
        "{{ messages[-1].content }}": "rewrites the message of the system",
        "{{ raise_exception('no') }}": "no",
    }
    for template, why in templates.items():
        other = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", chat_template=template
        )
        with pytest.raises(SettingError, match=f"system: True does not work; .*{why}"):
            make_task(chat=True, system="be brief", tokenizer=other)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("text", ["see a dog", "house", "the red cat"])
def test_a_completion_decodes_to_the_text_it_was_made_of(make_task: MakeTask, chat: bool, text: str) -> None:
    task = make_task(chat=chat)
    ids = task.encode_completion(text)
    assert ids[-1] == task.tokenizer.eos_token_id
    assert task.decode_completion(ids) == task.decode_completion(ids[:-1]) == text


def test_behind_a_plain_prompt_a_completion_begins_with_the_space_that_parts_words(task: TextTask) -> None:
    assert task.tokenizer.decode(task.encode_completion("dog")) == " dog<|end|>"


# Settings


@pytest.mark.parametrize("field", ["max_new_tokens", "max_prompt_tokens"])
def test_a_limit_below_one_is_refused(make_task: MakeTask, field: str) -> None:
    with pytest.raises(SettingError, match=f"{field}: 0 does not work; give at least 1 token"):
        make_task(**{field: 0})


def test_a_tokenizer_without_an_end_token_is_refused(make_task: MakeTask, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="eos_token"):
        make_task(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer))


def test_a_task_is_built_from_an_import_path_with_its_settings(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("somewhere")
    module.maker = make_task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    for maker in ("somewhere:maker", make_task):
        assert build_task(maker, max_new_tokens=3).max_new_tokens == 3
    with pytest.raises(SettingError, match="task: 'somewhere:else' does not work; it could not be imported"):
        build_task("somewhere:else")


def test_an_id_where_an_import_path_belongs_is_refused() -> None:
    with pytest.raises(SettingError, match=r"registered id to gym\.make"):
        build_task("rlgkd/GroundedSummary-v0")


def test_a_ready_task_takes_no_further_settings(task: TextTask) -> None:
    assert build_task(task) is task
    with pytest.raises(SettingError, match="takes no further settings"):
        build_task(task, max_new_tokens=3)


def test_quality_is_empty_where_there_is_none_and_else_what_its_function_says(make_task: MakeTask) -> None:
    item = Item(key="a", prompt="a")
    assert make_task().quality([item], ["dog"]) == [{}]
    measured = make_task(quality=lambda items, texts: [{"length": float(len(text))} for text in texts])
    assert measured.quality([item], ["dog"]) == [{"length": 3.0}]


def _frame(task: TextTask) -> tuple[list[int], list[int]]:
    before, after = "<|user|>\n", "<|end|>\n<|bot|>"
    return task.tokenizer(before)["input_ids"], task.tokenizer(after)["input_ids"]
