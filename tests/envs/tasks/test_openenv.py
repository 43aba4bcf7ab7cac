"""An OpenEnv server as an environment: the printed server is played and trained on, and one that fails gives no reward.

The tests start real servers on this machine.
"""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from gymnasium.utils import env_checker
from printed import examples
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common import env_checker as sb3_checker
from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.agents import Reinforce
from rlgkd.agents.sb3.actor_critic import LanguageModelActorCritic
from rlgkd.envs import TextTask, make_sb3_vec_env
from rlgkd.envs.tasks.openenv import openenv
from rlgkd.errors import DataError, DependencyError, RewardError, SettingError
from rlgkd.types import Item
from tests.tiny import byte_tokenizer, family

(SETTINGS,) = (text for text in examples("docs/environments.md", "yaml") if "OpenEnv" in text)
(PRINTED_SERVER,) = (text for text in examples("docs/environments.md") if "create_app" in text)
ODD_SERVER = '''
import time
import fastapi
import words_server
from words_server import *

class Odd(Words):
    """It does what it is asked to."""

    def step(self, action, **kwargs):
        word = action.text
        if word == "sleep":
            time.sleep(3)
        if word == "raise":
            raise LookupError("no such word")
        if word == "big":
            return Reply(text="a" * 2**24)
        reward = {"good": 0.5, "bad": -0.25, "text": None}.get(word)
        return Reply(text=str(time.time_ns()) if word == "random" else word, reward=reward, done=word == "stop")

class Unseeded(Odd):
    def reset(self, seed=None, **kwargs):
        return Reply(text=str(time.time_ns()))

app = fastapi.FastAPI()
app.mount("/odd", create_app(Odd, Turn, Reply, max_concurrent_envs=4))
app.mount("/unseeded", create_app(Unseeded, Turn, Reply))
app.mount("/single", create_app(Words, Turn, Reply))
app.mount("/", words_server.app)
'''
FIELDS: dict[str, Any] = {"observation_text": "text", "action_text": "text", "episodes": 6, "held_out_episodes": 2}
LIMITS: dict[str, Any] = {"max_prompt_tokens": 40, "max_new_tokens": 24}


class Server:
    """A server in a process of its own, at one port however often it is started."""

    def __init__(self, folder: Path) -> None:
        (folder / "words_server.py").write_text(PRINTED_SERVER)
        (folder / "odd_server.py").write_text(ODD_SERVER)
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = ["-m", "uvicorn", "odd_server:app", "--port", str(self.port), "--log-level", "warning"]
        self._process = subprocess.Popen([sys.executable, *command], cwd=self._folder)
        for _ in range(1200):
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.05)
        raise TimeoutError("the server does not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("openenv.core.generic_client", reason="openenv-core is not installed")
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.kill()


@pytest.fixture
def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def make_task(address: str) -> Callable[..., TextTask]:
    """A task of the printed server, or of the one at another path, with one token a byte."""

    def make(path: str = "", **settings: Any) -> TextTask:
        tokenizer = byte_tokenizer(*(bytes([n]) for n in range(256)))
        return openenv(**{"url": address + path, "tokenizer": tokenizer, **FIELDS, **LIMITS, **settings})

    return make


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openenv.core.generic_client", None)
    monkeypatch.setitem(sys.modules, "openenv", None)
    with pytest.raises(DependencyError, match=r"url: 'http://x:1' .* pip install 'rlgkd\[openenv\]'"):
        openenv(url="http://x:1")


def wanted(item: Item) -> int:
    """How many words the printed server wants."""
    return int(item.prompt.split()[1])


def test_the_turns_are_actions_and_the_reward_is_the_sum_of_the_steps(make_task: Any) -> None:
    task = make_task(episodes=20)
    item = next(item for n in range(20) if wanted(item := task.item("train", 0, n)) == 4)
    assert item.prompt == " Write 4 words."
    few, right, many = "a b", "a b c d", "a b c d e"
    assert [task.reply(item, [said]) for said in (few, many, right)] == [" Longer.", " Shorter.", None]
    episodes = [[right], [few, " Longer.", right], [few, " Longer.", many, " Shorter.", few], [few]]
    scores = task.score([item] * 4, [turns[-1] for turns in episodes], turns=episodes)
    assert [score.reward for score in scores] == [1.0, 1.0, 0.5, 0.0]
    assert [score.parts["steps"] for score in scores] == [1, 2, 3, 1]
    assert [score.parts["done"] for score in scores] == [1, 1, 1, 0]
    odd = make_task("/odd")
    said = ["good", "good", "bad", "bad", "good"]
    assert odd.score([odd.item("train", 0, 0)], ["good"], turns=[said])[0].reward == 0.75


def test_episodes_in_lockstep_have_the_replies_that_each_has_alone(make_task: Any) -> None:
    task = make_task()
    items = [task.item("train", 0, n) for n in range(6)]
    turns: list[list[str]] = [[] for _ in items]
    for text in ("a b c", "a b c d e", "a"):  # each reply is for another episode than the one before
        for item, said in zip(items, turns, strict=True):
            if len(said) % 2 == 0:
                said.append(text)
                reply = task.reply(item, said)
                said += [] if reply is None else [reply]
    for item, said in zip(items, turns, strict=True):
        replies = [" Longer." if len(text.split()) < wanted(item) else " Shorter." for text in said[::2]]
        over = len(said[-1].split()) == wanted(item) or len(said) == 5
        assert over and said[1::2] == replies[:-1]
    assert {len(said) for said in turns} == {1, 3, 5}


def test_splits_are_seeds_of_their_own(make_task: Any) -> None:
    task = make_task(episodes=3, held_out_episodes=2)
    seeds = {
        split: {task.item(split, 0, n).columns["seed"] for n in range(task.size(split))}
        for split in ("train", "validation", "test")
    }
    assert seeds == {"train": {0, 1, 2}, "validation": {3, 4}, "test": {5, 6}}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("raise", "RuntimeError: .*refused step .*'raise'.*no such word"),
        ("sleep", "TimeoutError: http://.*/odd did not answer within 1 seconds"),
        ("random", "ValueError: .* replayed the episode of seed . differently"),
        ("stop", "ValueError: the server ended the episode, and gave no reward"),
        ("big", "ConnectionError: .* closed the connection"),
    ],
)
def test_a_failure_of_the_server_is_a_failed_reward_and_no_number(make_task: Any, word: str, reason: str) -> None:
    task = make_task("/odd", timeout=1.0, max_failed_rewards=1.0)
    item, other = task.item("train", 0, 0), task.item("train", 0, 1)
    turns = [word]
    while (answer := task.reply(item, turns)) is not None and len(turns) < 5:
        task.reply(other, ["good"])  # so that the next reply plays it again
        turns += [answer, "good"]
    (score,) = task.score([item], [turns[-1]], turns=[turns])
    assert math.isnan(score.reward)
    assert re.match(reason, score.failure), score.failure
    assert task.score([other], ["good"], turns=[["good"]])[0].reward == 0.5


def test_a_server_that_cannot_be_used_is_one_line_before_training(make_task: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for settings, error, words in (
        ({"url": f"http://127.0.0.1:{port}"}, SettingError, rf"url: 'http://127.0.0.1:{port}' .*start .*\[Errno"),
        ({"url": "nowhere"}, SettingError, "url: 'nowhere' does not work; start an OpenEnv server there"),
        ({"path": "/unseeded"}, SettingError, "url: .*seed 0 begins differently each time"),
        ({"observation_text": "texts"}, DataError, "observation_text: 'texts' .*there are: 'text'"),
        ({"episodes": 0}, SettingError, "episodes: 0 "),
        ({"held_out_episodes": 1.5}, SettingError, "held_out_episodes: 1.5 "),
        ({"timeout": 0.0}, SettingError, "timeout: 0.0 .*above 0"),
        ({"max_prompt_tokens": 9}, DataError, "prompt: .*raise max_prompt_tokens"),
    ):
        with pytest.raises(error, match=words) as raised:
            make_task(**settings)
        assert "\n" not in str(raised.value)
    make_task("/single")
    with pytest.raises(SettingError, match=r"url: .*closed the connection.*max_concurrent_envs"):
        make_task("/single", timeout=29.0)  # of a session of its own


def test_an_action_field_that_the_server_does_not_know_is_named_by_the_failure(make_task: Any) -> None:
    task = make_task(action_text="message", max_failed_rewards=1.0)
    (score,) = task.score([task.item("train", 0, 0)], ["a"], turns=[["a"]])
    assert "refused step ({'message': 'a'},): Server error: Invalid message" in score.failure


def test_it_passes_both_checkers_and_trains_with_stock_sb3_and_an_agent(make_task: Any) -> None:
    task = make_task(max_new_tokens=12)
    env = gym.make("rlgkd/OpenEnv-v0", **_settings_of(task), max_new_tokens=12, max_prompt_tokens=40).unwrapped
    env_checker.check_env(env, skip_render_check=True)
    sb3_checker.check_env(env)
    lm = family("llama", task.tokenizer, max_position_embeddings=600)
    model = {"model": lm.module, "tokenizer": task.tokenizer}
    StockPPO(LanguageModelActorCritic, env, n_steps=16, batch_size=16, policy_kwargs=model, device="cpu").learn(16)
    before = lm.module.lm_head.weight.detach().clone()
    few: dict[str, Any] = {"prompts_per_update": 2, "group_size": 4, "alpha": 0.0}
    Reinforce(lm.module, env, tokenizer=task.tokenizer, **few).learn(40)
    assert not torch.equal(lm.module.lm_head.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_printed_settings_are_trained_and_compared(address: str, command: str, tmp_path: Path) -> None:
    from rlgkd.scripts.cli import main

    file = tmp_path / "words.yaml"
    assert yaml.safe_load(SETTINGS)["env_settings"]["url"] == "http://127.0.0.1:8000"
    file.write_text(SETTINGS.replace("http://127.0.0.1:8000", address))
    small = ["tokens=60", "prompts_per_update=2", "group_size=2", "eval_prompts=4", "threads=1", "--quiet"]
    grid = ["--alphas", "0", "--seeds", "1", "--samples", "1"] if command == "compare" else []
    with pytest.raises(SystemExit) as stop:
        main([command, str(file), *grid, *small, "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    if command == "train":
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["examples"][0]["prompt"].startswith(" Write ")
    else:
        assert json.loads((tmp_path / "out" / "results.json").read_text())["missing"] == []


class KillServer(BaseCallback):
    """Kills the server when the first texts have been written."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._server.kill()


def test_a_server_killed_in_training_gives_failed_rewards_and_one_that_is_back_is_found(
    server: Server, address: str
) -> None:
    tokenizer = byte_tokenizer(*(bytes([n]) for n in range(256)))
    settings = {"url": address, "tokenizer": tokenizer, **FIELDS, **LIMITS, "max_new_tokens": 8}
    lm = family("llama", tokenizer, max_position_embeddings=600)
    env = make_sb3_vec_env("rlgkd/OpenEnv-v0", **settings)
    agent = Reinforce(lm.module, env, tokenizer=tokenizer, alpha=0.0, prompts_per_update=4)
    with pytest.raises(
        RewardError, match=rf"samples failed.*ConnectionError: Failed to connect to ws://.*{server.port}/ws"
    ):
        agent.learn(100_000, callback=KillServer(server))
    task, turns = agent.task, [["a"]] * 3
    item = task.item("train", 0, 0)
    assert [task.reply(item, said) for said in turns[:2]] == [None, None]
    server.start()
    task.grader.max_failed = 1.0
    failed, failed_too, played = task.score([item] * 3, ["a"] * 3, turns=turns)
    # Two samples ended because the server was gone: that their turns can be played again now makes them no wholes.
    assert math.isnan(failed.reward) and math.isnan(failed_too.reward) and not math.isnan(played.reward)


def _settings_of(task: TextTask) -> dict[str, Any]:
    return {**FIELDS, "url": task.name.removeprefix("OpenEnv "), "tokenizer": task.tokenizer}
