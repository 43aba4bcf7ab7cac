"""`prompts_by: pass_rate` and `off_policy_from`: what is learned from goes by which texts are right."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents import Distill, Reinforce
from rlgkd.agents.pass_rates import chance, drawn, updated
from rlgkd.agents.state import TrainingState
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import SettingError
from rlgkd.types import Score

TOKENIZER = tiny.word_tokenizer("A", "B", "C", "D")
PAYS = {
    "A": lambda text: 1.0,
    "B": lambda text: 0.0,
    "C": lambda text: float(text.startswith("B")),
    "D": lambda text: math.nan,
}
"""By prompt: always right, never, sometimes, and not known."""


def agent_of(kind=Reinforce, **given):
    class Task(tiny.WordTask):
        def score(self, items, completions, **more):
            return [Score(reward=PAYS[item.prompt](text)) for item, text in zip(items, completions, strict=True)]

    task = Task(TOKENIZER, lambda text: 0.0, prompts=tuple(PAYS), max_new_tokens=2)
    settings = {"prompts_per_update": 4, "group_size": 4, "learning_rate": 1e-3, "seed": 3, **given}
    agent = kind(tiny.model(vocabulary=5, scale=0.1), TextVecEnv(task, num_envs=2), **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def learned(agent, updates: int) -> Counter[str]:
    """The prompts of so many updates."""
    seen: Counter[str] = Counter()
    for _ in range(updates):
        agent.learn(1, reset_num_timesteps=False)
        seen.update(t.item.prompt for t in agent.trajectories[::4])
    return seen


def test_the_chance_is_that_of_the_paper_with_a_floor() -> None:
    keys = [str(n % 3) for n in range(30_000)]
    indices = drawn({"0": 0.25, "1": 1.0}, keys.__getitem__, 0, 9000, floor=0.2, seed=1)
    counts, passed = Counter(keys[n] for n in indices), Counter(keys[: indices[-1] + 1])
    for key, expected in {"0": 0.75, "1": 0.2, "2": 1.0}.items():
        assert counts[key] / passed[key] == pytest.approx(expected, abs=0.03)
    assert indices == sorted(set(indices)) and [chance(rate, 1.0) for rate in (0.0, 0.3, 1.0)] == [1.0] * 3


def test_a_rate_is_the_running_share_of_right_texts_and_failed_rewards_do_not_count() -> None:
    agent = agent_of(alpha=0.0)
    agent.learn(1)
    texts = agent.trajectories
    rates = updated({"other": 0.5}, texts, passed_from=0.5)
    of = {t.item.prompt: t.item.key for t in texts}
    share = np.mean([t.score.reward for t in texts if t.item.prompt == "C"])
    assert rates == {"other": 0.5, of["A"]: 1.0, of["B"]: 0.0, of["C"]: share}
    again = updated({**rates, of["C"]: 0.0}, texts, passed_from=0.5)
    assert again[of["C"]] == share / 2 and again[of["A"]] == 1.0


def test_prompts_that_are_always_or_never_right_come_less() -> None:
    agent = agent_of(alpha=0.0, prompts_by="pass_rate", pass_rate_floor=0.1)
    seen = learned(agent, 40)
    assert seen["C"] > 2 * max(seen["A"], seen["B"]) and seen["D"] > 2 * max(seen["A"], seen["B"])
    assert min(seen.values()) > 0 and agent.state.next_prompt > 2 * 160
    plain = agent_of(alpha=0.0)
    assert set(learned(plain, 4).values()) == {4} and "pass_rates" not in plain.state.to_json()


def test_a_floor_of_1_draws_all_to_the_bit() -> None:
    by_rate, plain = agent_of(alpha=0.0, prompts_by="pass_rate", pass_rate_floor=1.0), agent_of(alpha=0.0)
    for agent in (by_rate, plain):
        agent.learn(100)
    ours, theirs = (agent.modules.state_dict() for agent in (by_rate, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert by_rate.state.next_prompt == plain.state.next_prompt


def test_training_that_goes_on_draws_the_prompts_of_one_that_never_stopped(tmp_path) -> None:
    agent, other = (agent_of(alpha=0.0, prompts_by="pass_rate") for _ in range(2))
    learned(agent, 6)
    parts = {"model": agent.modules, "optimizer": agent.policy.optimizer}
    checkpoint.save(tmp_path / "step", **parts, state=agent.state.to_json())
    state = checkpoint.load(tmp_path / "step", model=other.modules, optimizer=other.policy.optimizer)
    other.state = TrainingState.from_json(state)
    assert learned(agent, 6) == learned(other, 6) and agent.state == other.state
    with pytest.raises(ValueError, match="pass_rates"):
        TrainingState.from_json({**state, "pass_rates": {"x": 2.0}})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"alpha": 0.0, "passed_from": 0.7}, "passed_from"),
        ({"alpha": 0.0, "pass_rate_floor": 0.5}, "pass_rate_floor"),
        ({"alpha": 0.0, "off_policy_from": 0.5}, "off_policy_from"),
        ({"alpha": 1.0, "student_fraction": 0.0, "prompts_by": "pass_rate"}, "prompts_by"),
    ],
)
def test_what_has_no_effect_is_refused(given, named) -> None:
    teacher = None if given["alpha"] == 0 else tiny.model(vocabulary=5, seed=1)
    with pytest.raises(SettingError, match=f"^{named}: "):
        agent_of(teacher=teacher, **given)


def weights_after(updates: int = 2, **given) -> dict[str, torch.Tensor]:
    teacher = tiny.model(vocabulary=5, seed=1, scale=0.3)
    settings = {"student_fraction": 0.0, "off_policy": "teacher", "divergence": "forward_kl", **given}
    agent = agent_of(Distill, teacher=teacher, **settings)
    learned(agent, updates)
    return {
        **agent.modules.state_dict(),
        "left out": torch.tensor(agent.rows.rows[0].get("train/off_policy_left_out", -1.0)),
    }


def test_off_policy_texts_below_a_reward_are_left_out_of_the_gradient(monkeypatch) -> None:
    """The weights are those of a training on the right texts alone; a threshold that all reach changes no bit."""
    some = weights_after(off_policy_from=0.5, prompts_per_update=4, group_size=1, mixture="prompt")
    assert 0 < some["left out"] < 1

    everything, reached = weights_after(), weights_after(off_policy_from=-1.0)
    assert reached.pop("left out") == 0.25 and everything.pop("left out") == -1  # the reward of D fails always
    monkeypatch.setitem(PAYS, "D", lambda text: 0.0)
    reached = weights_after(off_policy_from=-1.0)
    assert reached.pop("left out") == 0.0
    assert all(torch.equal(everything[name], reached[name]) for name in everything)
    none = weights_after(off_policy_from=2.0)
    start = agent_of(Distill, teacher=tiny.model(vocabulary=5, seed=1)).modules.state_dict()
    assert none.pop("left out") == 1.0 and all(torch.equal(none[name], start[name]) for name in start)
