"""examples/from_scratch.py is what it says: `Reinforce` in one short file, on public functions of ops and lm alone.

Guards against an example that still runs but has drifted from the agent: another random stream, another reduction,
another optimizer, another default.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from pathlib import Path

import from_scratch
import gymnasium as gym
import pytest
import torch
from from_scratch import Settings, train

from rlgkd.agents import Reinforce
from rlgkd.agents.reinforce import ReinforceConfig
from rlgkd.lm import LanguageModel, language_model, load, load_tokenizer

SOURCE = Path(from_scratch.__file__).read_text()
ITS_OWN = {"env", "student", "teacher", "updates", "learning_rate", "seed"}
"""Settings that `Reinforce` takes in another form, or with another default."""


def open_model(name: str) -> LanguageModel:
    return language_model(load(name), load_tokenizer(name))


def distance(some: torch.nn.Module, others: torch.nn.Module) -> float:
    pairs = zip(some.parameters(), others.parameters(), strict=True)
    return torch.stack([(p - q).detach().norm() for p, q in pairs]).norm().item()


def test_its_first_updates_are_those_of_reinforce() -> None:
    settings = Settings(updates=3, prompts_per_update=8)
    student, teacher = open_model(settings.student), open_model(settings.teacher)
    start = copy.deepcopy(student.module)
    task = gym.make(settings.env).get_wrapper_attr("task")
    given = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ITS_OWN}
    agent = Reinforce(
        settings.student,
        settings.env,
        teacher=settings.teacher,
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        device="cpu",
        policy_reduction="sequence_sum",
        divergence_reduction="sequence_mean",
        **given,
    )
    for update in train(settings, task, student, teacher):
        agent.learn(1, reset_num_timesteps=False)
        assert update.texts == [t.text for t in agent.trajectories]
        logged = agent.last_metrics
        assert update.loss == pytest.approx(logged["train/loss"], rel=1e-4)
        assert update.divergence == pytest.approx(logged["train/divergence"], rel=1e-4)
        assert update.reward == pytest.approx(logged["rollout/ep_rew_mean"], rel=1e-9)
        # Measured against the way from the start, which is a small part of the weights. AdamW divides each gradient by
        # its own size, so where a gradient is nearly 0 its rounding shows.
        assert distance(student.module, agent.student.module) < 1e-3 * distance(agent.student.module, start)
    assert agent.state.updates == settings.updates


def test_its_defaults_are_those_of_reinforce() -> None:
    defaults = ReinforceConfig().flat()
    shared = {field.name: field.default for field in dataclasses.fields(Settings) if field.name not in ITS_OWN}
    assert shared == {name: defaults[name] for name in shared}


def test_it_stands_on_public_functions_of_ops_and_lm_and_stays_short() -> None:
    modules = {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    ours = {module for module in modules if module.startswith("rlgkd")}
    assert ours == {"rlgkd.lm", "rlgkd.ops", "rlgkd.ops.sampling", "rlgkd.types"}
    assert len(SOURCE.splitlines()) <= 150


def test_it_prints_loss_divergence_and_reward_of_each_update(capsys: pytest.CaptureFixture[str]) -> None:
    from_scratch.main(Settings(updates=2, prompts_per_update=2, group_size=2))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["update", "loss", "divergence", "reward"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert all(len(row.split()) == 4 for row in rows)
