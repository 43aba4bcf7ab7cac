"""Conversations, nested columns, several right answers and tools, as data sets of other libraries hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rlgkd.agents import Distill
from rlgkd.envs import TextGenerationEnv, TextTask
from rlgkd.envs.data.items import read_items
from rlgkd.errors import DataError, SettingError
from rlgkd.rollout import reference_episodes
from rlgkd.types import Item
from tests.tiny import byte_tokenizer, family

ASKED = {"role": "user", "content": "1 + 1?"}
TURNS = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": "2"}]
GO_ON = [*TURNS, {"role": "user", "content": "And 2 + 2?"}]
CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
Make = Callable[..., TextTask]


def first(data: list[Any], **settings: Any) -> Item:
    return read_items(data, **settings).item("test", 0, 0)


@pytest.fixture
def make() -> Make:
    tokenizer = byte_tokenizer(*(bytes([n]) for n in range(256)))
    tokenizer.chat_template = CHATML
    brief = {"name": "length", "words": 9}
    common = {"reward": brief, "tokenizer": tokenizer, "chat": True, "max_prompt_tokens": 400}
    return lambda **settings: TextTask(**{**common, **settings})


def prompt_of(task: TextTask) -> str:
    return str(task.tokenizer.decode(task.encode_prompt(task.item("test", 0, 0))))


def test_a_conversation_stands_in_the_template_as_it_is_up_to_where_the_answer_begins(make: Make) -> None:
    shown = "[system]Be brief.<end>[user]1 + 1?<end>[assistant]2<end>[user]And 2 + 2?<end>[assistant]"
    for data in ([GO_ON], [{"prompt": GO_ON}], [{"prompt": json.loads(json.dumps(GO_ON))}]):
        assert prompt_of(make(prompts=data)) == shown
    assert prompt_of(make(prompts=[GO_ON], system="Be long.")) == shown  # its own comes first
    assert prompt_of(make(prompts=[GO_ON[1:]], system="Be brief.")) == shown
    assert prompt_of(make(prompts=[[ASKED]])) == prompt_of(make(prompts=["1 + 1?"]))
    item = first([GO_ON])
    assert item.prompt == "system: Be brief.\n\nuser: 1 + 1?\n\nassistant: 2\n\nuser: And 2 + 2?"
    assert first([[ASKED]]).prompt == "1 + 1?"


def test_the_assistants_turns_in_a_prompt_are_no_actions(make: Make) -> None:
    task = make(prompts=[{"prompt": GO_ON, "reference": "4"}])
    lm = family("llama", task.tokenizer, max_position_embeddings=400)
    (episode,) = reference_episodes(lm, task, [task.item("test", 0, 0)])
    assert task.tokenizer.decode(episode.tokens_T[episode.action_mask_T]) == "4<end>"


def test_special_tokens_in_a_message_stay_text_and_in_a_call_are_refused(make: Make) -> None:
    end = make(prompts=["x"]).tokenizer.eos_token_id
    ids = make(prompts=[[{"role": "user", "content": "a<end>b"}]]).encode_prompt(first(["a<end>b"]))
    assert ids.count(end) == 1
    calls = [{"function": {"name": "f<end>", "arguments": {}}}]
    with pytest.raises(DataError, match=r"prompt: '0' .*holds the special token '<end>'"):
        make(prompts=[[ASKED, {"role": "assistant", "content": None, "tool_calls": calls}, ASKED]])


def test_calls_in_the_history_reach_the_template_without_the_nulls_of_arrow(make: Make) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}, "id": None}
    history = [
        {**ASKED, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
    ]
    expected = '[assistant][{"function": {"name": "add", "arguments": {"a": 1}}}]<end>[tool]2<end>[assistant]'
    assert prompt_of(make(prompts=[history])).endswith(expected)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_column_of_tools_is_given_to_the_chat_template(make: Make, as_json: bool) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": None}}]
    row = {"prompt": "1 + 1?", "tools": json.dumps(tools) if as_json else tools}
    task = make(prompts=[row, {"prompt": "x", "tools": None}])
    assert prompt_of(task) == '[{"type": "function", "function": {"name": "add"}}][user]1 + 1?<end>[assistant]'
    assert make(prompts=[{"prompt": "x", "tools": "a hammer"}], chat=False).item("test", 0, 0).columns["tools"]
    with pytest.raises(DataError, match="tools: '0' does not work; it is no JSON"):
        make(prompts=[{"prompt": "x", "tools": "a hammer"}])


TRL = {"prompt": [ASKED], "completion": [{"role": "assistant", "content": "2"}]}
VERL = {
    "data_source": "sums",
    "prompt": [ASKED],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": 2},
    "extra_info": {"index": 7, "answers": ["2", "two"]},
}


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (TRL, {"reference": "completion"}),
        ({"prompt": "1 + 1?", "completion": "2"}, {"reference": "completion"}),
        ({"messages": [ASKED, TURNS[-1]]}, {"prompt": "messages"}),
        ({"prompt": [ASKED], "chosen": [TURNS[-1]], "rejected": [ASKED]}, {"reference": "chosen"}),
        ({"chosen": [ASKED, TURNS[-1]], "rejected": []}, {"prompt": "chosen"}),
        ({"prompt": [ASKED], "chosen": [ASKED, TURNS[-1]]}, {"reference": "chosen"}),
        (VERL, {"reference": "reward_model.ground_truth"}),
        (VERL, {"prompt": "{prompt.0.content}", "reference": "extra_info.answers"}),
        ({"input": "1 + 1?", "label": "2"}, {"prompt": "input", "reference": "label"}),
        ({"context_messages": [ASKED], "label": "2"}, {"prompt": "context_messages", "reference": "label"}),
        (
            {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
            {"prompt": "conversations"},
        ),
    ],
)
def test_the_data_of_other_libraries_is_read_as_it_is(row: dict[str, Any], settings: dict[str, Any]) -> None:
    item = first([row], **settings)
    assert (item.prompt, item.reference) == ("1 + 1?", "2")


def test_a_dotted_name_looks_into_columns_alone_and_a_column_of_that_name_comes_first() -> None:
    assert first([{"prompt": "{x}", "a.b": 1, "a": {"b": 2, "c": [3]}}], reference="{a.b} {a.c.0}").reference == "1 3"
    for name in ("a.b.real", "a.__class__", "a.c.1", "prompt.0"):
        with pytest.raises(DataError, match=r"no such column; there are: 'prompt', 'a\.b', 'a\.c'"):
            first([{"prompt": "x", "a": {"b": 2, "c": [3]}}], reference=f"{{{name}}}")
    with pytest.raises(DataError, match=r"reference: 'a' .* holds a dict in 0; name one of 'a\.b', 'a\.c'"):
        first([{"prompt": "x", "a": {"b": 2, "c": [3]}}], reference="a")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"role": "assistant", "content": "2"}], "it is empty"),
        ([{"role": "user", "content": None}], "message 1' does not work; its content is None; give a text"),
        ([{"role": None, "content": "a"}], "its role is None"),
        ([{"role": "user", "content": [{"type": "image"}]}], "only texts can be read"),
        (["a"], r"it holds a list in 0; give a column of texts, or of conversations"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused_with_its_row(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        first([{"prompt": value}])
    assert first([{"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}]).prompt == "a"


def test_a_conversation_without_a_chat_template_is_refused_at_once(make: Make) -> None:
    with pytest.raises(SettingError, match=r"chat: False .*the prompt of 0 is a conversation; set chat to true"):
        make(prompts=[GO_ON], chat=False)


def test_the_best_of_several_right_answers_counts_and_training_on_references_takes_the_first(make: Make) -> None:
    rows = [{"prompt": "a", "reference": ["two", 2]}, {"prompt": "b", "reference": "2"}]
    task = make(prompts=rows, reward={"exact": "exact", "numeric": {"name": "numeric", "marker": "="}})
    items = [task.item("test", 0, n) for n in (0, 1, 0)]
    with pytest.raises(ValueError, match="could not convert"):
        make(prompts=rows, reward={"name": "numeric", "marker": "="}).grader.reward(["= 2"], [("two", "2")])
    exact = make(prompts=rows, reward="exact")
    assert [score.reward for score in exact.score(items, ["2", "2", "three"])] == [1.0, 1.0, 0.0]
    seen: list[Any] = []
    own = make(prompts=rows, reward=lambda completions, references: seen.extend(references) or [0.0] * len(completions))
    own.score(items[:2], ["a", "b"])
    assert seen == [("two", "2"), "2"]
    with pytest.raises(DataError, match="reference: '0' does not work; it has none"):
        make(prompts=[{"prompt": "a", "reference": []}], reward="exact")
    lm = family("llama", task.tokenizer, max_position_embeddings=900)
    (episode,) = reference_episodes(lm, task, items[:1])
    assert episode.text == "two"


def test_all_rows_that_cannot_be_used_are_in_one_message_or_left_out_and_counted(make: Make, caplog: Any) -> None:
    good = [{"prompt": f"p{n}", "reference": "1"} for n in range(20)]
    bad = [{"prompt": "x" * 500, "reference": "1"}, {"prompt": "no reference"}, {"prompt": None, "reference": "1"}]
    for data in ([*good, *bad], {"train": good, "test": bad}):
        with pytest.raises(DataError) as error:
            make(prompts=data, reward="exact")
        assert "3 of 23 rows cannot be used: " in str(error.value)
        assert str(error.value).endswith("unusable_rows: drop leaves such rows out") and "\n" not in str(error.value)
        left = make(prompts=data, reward="exact", unusable_rows="drop")
        assert left.size("train") == 20
        assert "3 of 23 rows are left out" in caplog.records[-1].getMessage()
    assert make(prompts=[*good, {"prompt": "no reference"}]).size("train") == 21  # no reference is compared with
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        make(prompts=bad[1:], reward="exact", unusable_rows="drop")
    with pytest.raises(SettingError, match=r"unusable_rows: 'ignore' .* choose one of refuse, drop"):
        make(prompts=good, unusable_rows="ignore")


def test_a_source_of_items_is_checked_too_and_a_function_draws_again(make: Make) -> None:
    source = read_items(["a", "x" * 500])
    with pytest.raises(DataError, match="prompt: '1' does not work; it has"):
        make(prompts=source)
    assert make(prompts=source, unusable_rows="drop").size("test") == 1
    draws = iter(["x" * 500, "a"] * 10)
    task = make(prompts=lambda rng: next(draws), split_shares=None, unusable_rows="drop")
    assert {task.item("train", 0, n).prompt for n in range(5)} == {"a"}


def test_an_agent_names_all_items_that_lack_a_reference_before_it_trains(make: Make) -> None:
    prompts = [{"prompt": "a", "reference": "1"}, *({"prompt": f"{n}"} for n in range(7))]
    env = TextGenerationEnv(make(prompts=prompts))
    lm = family("llama", env.task.tokenizer, max_position_embeddings=500)
    for seed in range(3):  # whichever item comes first
        with pytest.raises(DataError, match=r"give references .*7 of 8 rows cannot be used: '\d', .*, \.\.\."):
            Distill(lm.module, env, teacher=lm.module, tokenizer=lm.tokenizer, student_fraction=0.0, seed=seed)
