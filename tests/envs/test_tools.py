"""Tools: functions that a policy calls by text, whose failures it reads, and the environment that has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.utils import env_checker
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common import env_checker as sb3_checker
from transformers import PreTrainedTokenizerFast

from rlgkd.agents import Reinforce
from rlgkd.agents.sb3.actor_critic import LanguageModelActorCritic
from rlgkd.envs import TextTask
from rlgkd.envs.tasks.calculator import calculate
from rlgkd.envs.tools import Tools, call_of
from rlgkd.errors import SettingError
from rlgkd.rollout import replay_episodes, score_episodes
from rlgkd.types import Source
from tests.tiny import byte_tokenizer, family

SHOWS_TOOLS = (
    "{% if tools %}tools:{% for t in tools %} {{ t.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m['role'] not in ['user', 'system', 'assistant', 'tool'] %}"
    "{{ raise_exception('no such role') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ONLY_USERS = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and a chat template."""
    tokenizer = byte_tokenizer(*(bytes([n]) for n in range(256)))
    tokenizer.chat_template = template
    return tokenizer


def call(expression: object, name: str = "calculate") -> str:
    return call_of(name, {"expression": expression})


@pytest.fixture
def make_env_task() -> Callable[..., TextTask]:
    def make(template: str = SHOWS_TOOLS, **settings: Any) -> TextTask:
        limits = {"max_prompt_tokens": 900, "max_new_tokens": 300}
        task: TextTask = gym.make(
            "rlgkd/Calculator-v0", tokenizer=chat_tokenizer(template), **{**limits, **settings}
        ).unwrapped.task
        return task

    return make


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (call("2 * (3 + 4) - -1"), "15"),
        ('{"name": "calculate", "parameters": {"expression": "1+1"}}', "2"),
        ('<tool_call>{"name": "calculate", "arguments": "{\\"expression\\": \\"1+1\\"}"}', "2"),
        (call("1") + call("2"), "1\n2"),
        ("It is 5.", None),
        ('{"name": "x"}', None),
        (call("1", name="guess"), "Error: there is no tool 'guess'; there are: calculate"),
        (call("2 ** 9"), "Error: ValueError: only whole numbers, +, -, * and parentheses"),
        (call([1]), "Error: expression: Input should be a valid string"),
        ("<tool_call>{not json}</tool_call>", "Error: a call is {"),
        ("<tool_call>[1]</tool_call>", "Error: a call is {"),
        ('<tool_call>{"name": [], "arguments": {}}</tool_call>', "Error: a call is {"),
        ('<tool_call>{"name": "calculate", "arguments": {"expresion": "1"}}</tool_call>', "Error: expression: "),
    ],
)
def test_a_call_is_answered_and_a_failure_is_a_text(turn: str, answer: str | None) -> None:
    found = Tools([calculate]).answer(turn)
    assert found == answer if answer is None or not answer.startswith("Error") else str(found).startswith(answer)
    assert found is None or "\n" not in found or answer == "1\n2"


def test_a_tool_that_raises_or_exits_is_no_end_of_the_run() -> None:
    def leave(code: int) -> int:
        """Leave.

        Args:
            code: The code.
        """
        raise SystemExit(code)

    turn = '<tool_call>{"name": "leave", "arguments": {"code": "3"}}</tool_call>'
    assert Tools([leave]).answer(turn) == "Error: SystemExit: 3"


def test_a_function_that_has_no_schema_is_refused_in_one_line() -> None:
    def untyped(a):  # type: ignore[no-untyped-def]
        return a

    for given in (untyped, 3, "nowhere"):
        with pytest.raises(SettingError, match="tools: ") as error:
            Tools([given])  # type: ignore[list-item]
        assert "\n" not in str(error.value)


def test_the_student_reads_the_answers_and_the_score_counts_calls_and_failures(make_env_task: Any) -> None:
    task = make_env_task()
    item = task.item("train", 0, 0)
    result = item.columns["result"]
    assert item.reference == call(item.prompt.removeprefix("What is ").removesuffix("?"))
    lm = family("llama", task.tokenizer, max_position_embeddings=2000)
    turns = [call("1 / 2"), item.reference, f"It is {result}."]
    ids = [token for turn in turns for token in task.encode_completion(turn)]
    (trajectory,) = score_episodes(task, replay_episodes(lm, task, [item], [ids], source=Source.DATA))
    assert trajectory.turns[3] == result and trajectory.turns[1].startswith("Error: ValueError")
    assert trajectory.score.reward == 1.0
    assert trajectory.score.parts == {"tool_calls": 2.0, "tool_errors": 1.0}
    text = task.tokenizer.decode(trajectory.tokens_T)
    assert f"[tool]{result}<end>[assistant]It is" in text and text.startswith("tools: calculate[system]")
    said = task.tokenizer.decode(trajectory.tokens_T[trajectory.action_mask_T])
    assert said == "".join(f"{turn}<end>" for turn in turns)  # no answer of the tool is an action


def test_a_template_without_tools_gets_them_in_the_systems_message_and_answers_as_the_users(make_env_task: Any) -> None:
    task = make_env_task(ONLY_USERS, system="")
    prompt = task.tokenizer.decode(task.encode_prompt(task.item("train", 0, 0)))
    assert prompt.startswith("[system]You may call these tools:") and '"name": "calculate"' in prompt
    assert task.tokenizer.decode(task.encode_reply("7")) == "[user]7<end>[assistant]"


def test_tools_need_a_chat_template_and_no_other_reply(make_task: Callable[..., TextTask]) -> None:
    with pytest.raises(SettingError, match=r"tools: \['calculate'\] .*set chat to true"):
        make_task(tools=[calculate])
    with pytest.raises(SettingError, match=r"reply: .*give one of the two"):
        make_task(tools=[calculate], chat=True, reply=lambda item, turns: None)


def test_the_calculator_passes_both_checkers_and_trains_with_stock_sb3_and_an_agent() -> None:
    tokenizer = chat_tokenizer(SHOWS_TOOLS)
    settings: dict[str, Any] = {"max_prompt_tokens": 200, "max_new_tokens": 12}
    env = gym.make("rlgkd/Calculator-v0", tokenizer=tokenizer, **settings).unwrapped
    env_checker.check_env(env, skip_render_check=True)
    sb3_checker.check_env(env)
    lm = family("llama", tokenizer, max_position_embeddings=600)
    model = {"model": lm.module, "tokenizer": tokenizer}
    before = lm.module.lm_head.weight.detach().clone()
    StockPPO(LanguageModelActorCritic, env, n_steps=16, batch_size=16, policy_kwargs=model, device="cpu").learn(16)
    teacher = family("llama", tokenizer, max_position_embeddings=600, initializer_range=0.2).module
    few: dict[str, Any] = {"prompts_per_update": 2, "group_size": 2}
    Reinforce(lm.module, env, teacher=teacher, tokenizer=tokenizer, alpha=0.5, **few).learn(40)
    assert not torch.equal(lm.module.lm_head.weight, before)
