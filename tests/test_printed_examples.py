"""The examples of README.md, CONTRIBUTING.md, and docs/ on environments, rewards and trackers, as printed."""

import ast
import json
import re
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from printed import ROOT, examples

from rlgkd.ops import behaviour_policy, divergence, gate, returns
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.tracking.protocol import TrackedRun


@pytest.mark.slow
def test_a_reward_of_ones_own_in_ten_lines_does_what_the_readme_says(capsys):
    first, *_ = examples("README.md")
    exec(compile(first, "README.md", "exec"), {})
    (written,) = ast.literal_eval(capsys.readouterr().out.strip())
    assert written.startswith("Hugo Norberg") and len(written.split()) <= 7  # of 13 before


@pytest.fixture
def tables():
    """Restored when the test is over."""
    before = [
        (table, dict(table))
        for table in (divergence.DIVERGENCES, returns.ADVANTAGES, behaviour_policy.BEHAVIOURS, gate.GATES)
    ]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


@pytest.mark.slow
def test_the_worked_example_trains(tables):
    (example,) = examples("CONTRIBUTING.md")
    names: dict[str, object] = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    agent = names["agent"]
    assert agent.num_timesteps >= 1000
    gated = names["gated"]
    assert gated.num_timesteps >= 500 and 0 < gated.last_metrics["train/gate_divergence"] < 1
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    by_hand = 1 - (p * q).sqrt().sum()
    torch.testing.assert_close(divergence.get("squared_hellinger")(p.log(), q.log()), by_hand)


def test_functions_of_ones_own_are_settings_as_printed(tables, tmp_path, monkeypatch):
    (tmp_path / "method.py").write_text(examples("docs/mathematics.md")[-1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (command,) = re.findall(
        r"^    rlgkd train mine.yaml (divergence=.*)$", (ROOT / "docs/mathematics.md").read_text(), re.M
    )
    config = read("quickstart", command.split()).algorithm
    logits = torch.randn(3, 5)
    assert config.objective.divergence.function(logits, 2 * logits).shape == (3,)
    assert config.reward.advantage.function(
        torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    ).tolist() == [[-2.0, 0.0]]


ENVIRONMENTS = "docs/environments.md"


@pytest.mark.slow
def test_the_file_of_ones_own_environment_is_trained_on_as_printed(tmp_path, monkeypatch):
    from rlgkd.scripts.cli import main

    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    mine.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (rows,), (settings, *_) = examples(ENVIRONMENTS, "csv"), examples(ENVIRONMENTS, "yaml")
    (mine / "capitals.csv").write_text(rows)
    (mine / "capitals.yaml").write_text(settings)
    small = ["tokens=60", "prompts_per_update=2", "group_size=2", "eval_prompts=4", "threads=1", "--out", "run"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "../mine/capitals.yaml", *small, "--quiet"])
    assert stop.value.code == 0
    summary = json.loads((elsewhere / "run" / "summary.json").read_text())
    assert [example["reference"] for example in summary["examples"]] == ["Paris", "Rome", "Lima", "Tokyo"]


def test_the_rewards_of_ones_own_environment_are_a_sum_as_printed():
    from rlgkd.envs.rewards.registry import reward_from
    from rlgkd.types import Item

    _, settings, *_ = examples(ENVIRONMENTS, "yaml")
    reward = reward_from(yaml.safe_load(settings)["reward"])
    (score,) = reward([Item(key="0", prompt="", reference="5")], ["2 + 3 is #### 5"])
    assert score.parts == {"right": 1.0, "brief": 1.0, "calm": 1.0} and score.reward == pytest.approx(1.3)


def test_the_function_of_ones_own_environment_draws_and_scores_as_printed(capsys):
    function, *_ = examples(ENVIRONMENTS)
    names: dict[str, object] = {}
    exec(compile(function, ENVIRONMENTS, "exec"), names)
    info = ast.literal_eval(capsys.readouterr().out)
    a, b = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?\nAnswer:", info["prompt"]).groups())
    assert info["reference"] == str(a + b)
    task = names["env"].task
    item = task.item("train", 0, 0)
    scores = task.score([item] * 3, [info["reference"], str(a + b + 1), "none"])
    assert [score.reward for score in scores] == [1.0, pytest.approx(1 - 1 / max(a, b)), 0.0]


def test_the_id_of_ones_own_environment_is_made_and_checked_as_printed():
    from gymnasium import registry
    from gymnasium.utils.env_checker import check_env

    _, registered, *_ = examples(ENVIRONMENTS)
    names: dict[str, object] = {}
    try:
        exec(compile(registered, ENVIRONMENTS, "exec"), names)
    finally:
        registry.pop("mine/Shout-v0", None)
    check_env(names["env"].unwrapped, skip_render_check=True)
    task = names["env"].unwrapped.task
    assert task.score([task.item("test", 0, 0)], ["Hi!!"])[0].reward == 2 / 3
    names["vector"].reset(seed=0)
    assert names["vector"].step(names["vector"].action_space.sample())[1].shape == (4,)


def test_the_calculator_of_ones_own_environment_answers_as_printed(capsys):
    names: dict[str, object] = {}
    (example,) = (one for one in examples(ENVIRONMENTS) if '"42"' in one)
    exec(compile(example, ENVIRONMENTS, "exec"), names)
    assert capsys.readouterr().out == " 42\n"
    env = names["env"]
    for reward, text in ((1.0, "42"), (0.0, "41")):
        env.reset(seed=0)
        first = [env.step(token) for token in env.task.encode_completion("17 + 25 =")]
        assert not any(over for _, _, over, _, _ in first) and "42" in env.render()
        *_, last = [env.step(token) for token in env.task.encode_completion(text)]
        assert last[1:3] == (reward, True)


def test_the_served_reward_and_the_models_of_docs_rewards_do_what_is_printed(capsys, tmp_path):
    models, server, client = examples("docs/rewards.md")
    exec(compile(models, "docs/rewards.md", "exec"), {})
    true, false = ast.literal_eval(capsys.readouterr().out)
    assert true > 0.9 and false < 0.1
    (tmp_path / "server.py").write_text(server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with subprocess.Popen([sys.executable, "server.py", port], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            exec(compile(client.replace("8000", port), "docs/rewards.md", "exec"), {})
        finally:
            process.kill()
    printed = capsys.readouterr().out.strip()
    assert f"It prints `{printed}`." in (ROOT / "docs/rewards.md").read_text()


def test_the_tracker_of_docs_trackers_is_one(tmp_path):
    """Its five calls, in the order in which a run makes them."""
    (printed,) = examples("docs/trackers.md")
    names: dict = {}
    exec(compile(printed, "docs/trackers.md", "exec"), names)
    tracker = names["MyTracker"]()
    run = TrackedRun(id="0", name="a", project="b", folder=tmp_path, settings={}, resumed=False)
    assert tracker.start(run) == str(tmp_path / "mine.jsonl")
    tracker.numbers({"train/divergence": 0.5}, 7)
    tracker.texts([{"prompt": "a"}], 7)
    tracker.files([tmp_path])
    tracker.end(whole=True)
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert lines[0] == {"tokens": 7, "train/divergence": 0.5} and len(lines) == 3
