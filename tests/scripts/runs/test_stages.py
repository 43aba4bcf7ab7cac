"""Runs in stages: each trains by its own settings, ends by tokens or by a held-out measure, and is resumed exactly.

The behaviours guarded: one stage is a run without stages, to the bit; two stages with the same settings too; a stage
begins at the update after the one that ended the last, with its own objective, schedules and learning rate; stopped or
killed in any stage and resumed, the run is the one never stopped; what a stage cannot have is refused before training.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from on_request import minutes
from short_runs import SMALL, begin, begin_and_end, crash, evaluations, go_on, interrupt, outcome, trained

from rlgkd import agents, checkpoint
from rlgkd.envs import make_sb3_vec_env
from rlgkd.errors import SettingError
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.report.run_files import read_run
from rlgkd.scripts.report.view import stage_beginnings
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.tables import number_of_rows

STAGES = (
    "stages=[{alpha: 1, divergence: forward_kl, until: 'plateau(+length, 1)'}, "
    "{alpha: 0.5, alpha_end: 0.2, until: 0.8}, {alpha: 0, learning_rate: 0.001}]"
)
WATCHED = ["eval_every=40", "eval_every_prompts=2", "keep_best=reward", STAGES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train.start(read("quickstart", [*SMALL, *WATCHED]), out, quiet=True)
    return out


def column(out: Path, name: str) -> list[float]:
    return [float(value) for value in read_run(out).progress[name]]


def test_one_stage_is_a_run_without_stages_and_equal_ones_are_too(tmp_path: Path) -> None:
    moving = ["alpha=0.6", "alpha_end=0.2"]
    begin(tmp_path / "none", "tokens=160", *moving)
    begin(tmp_path / "one", "tokens=160", "stages=[{alpha: 0.6, alpha_end: 0.2}]")
    assert trained(tmp_path / "one") == trained(tmp_path / "none")
    begin(tmp_path / "constant", "tokens=160")
    begin(tmp_path / "equal", "tokens=160", "stages=[{until: 50}, {alpha: 0.5, until: 0.6}, {}]")
    assert trained(tmp_path / "equal") == trained(tmp_path / "constant") != trained(tmp_path / "none")


def test_each_stage_trains_by_its_own_settings_from_the_update_after_the_last_one(whole: Path) -> None:
    found = json.loads((whole / "summary.json").read_text())["stages"]
    begins = [stage["updates"] for stage in found]
    tokens, alphas = column(whole, "time/total_timesteps"), column(whole, "train/alpha")
    assert len(found) == 3 and begins[0] == 0 < begins[1] < begins[2] < len(alphas)
    assert [stage["tokens"] for stage in found] == [0, *(tokens[update - 1] for update in begins[1:])]
    assert [stage["end"] for stage in found] == [found[1]["tokens"], found[2]["tokens"], tokens[-1]]
    assert set(alphas[: begins[1]]) == {1.0} and set(alphas[begins[2] :]) == {0.0}
    # Alpha goes to its end over the stage: from where it began to 0.8 of 300 tokens.
    begin_tokens, end_tokens = found[1]["tokens"], 240
    middle = [max(0.0, 1 - (now - begin_tokens) / (end_tokens - begin_tokens)) for now in tokens[begins[1] : begins[2]]]
    assert alphas[begins[1] : begins[2]] == pytest.approx([0.2 + 0.3 * remaining for remaining in middle])
    assert middle[-1] == 0.0, "it ended with the update that passed 240 tokens"


def test_a_stage_ends_with_the_evaluation_that_was_no_better(whole: Path) -> None:
    rows = evaluations(whole)
    ended = json.loads((whole / "summary.json").read_text())["stages"][0]["end"]
    lengths = [row["length"] for row in rows if row["time/total_timesteps"] <= ended]
    assert all(now > max(lengths[:number]) for number, now in enumerate(lengths[1:-1], start=1))
    assert lengths[-1] <= max(lengths[:-1])
    # Where a stage ends by its tokens there is an evaluation too.
    assert json.loads((whole / "summary.json").read_text())["stages"][1]["end"] in [
        row["time/total_timesteps"] for row in rows
    ]


def test_the_report_has_bands(whole: Path) -> None:
    page, summary = (whole / "report.html").read_text(), read_run(whole).summary
    assert len(stage_beginnings(summary)) == 3
    assert "In stages, which are bands in the curves" in page and "alpha=1 divergence=forward_kl" in page
    assert stage_beginnings({"stages": [{"tokens": 5}, {"tokens": 1}]}) == stage_beginnings({"stages": [3]}) == []


@pytest.mark.parametrize(
    ("end", "update"),
    [
        (interrupt, 1),
        (crash, 4),
        *(pytest.param(end, update, marks=minutes) for end in (interrupt, crash) for update in range(6)),
    ],
)
def test_a_run_that_ended_in_any_stage_and_was_resumed_is_the_one_that_was_not(
    end: Callable[[], None], update: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_and_end(tmp_path / "run", *WATCHED, end=end, update=update, monkeypatch=monkeypatch)
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


@minutes
@pytest.mark.parametrize("rows", range(1, 6))
def test_a_process_that_was_killed_in_any_stage_and_resumed_is_the_one_that_was_not(
    rows: int, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rlgkd.scripts", "train", "quickstart", "--out", str(out), "--quiet"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *SMALL, *WATCHED], stdout=log, stderr=log)
    while process.poll() is None and number_of_rows(out / "progress.csv") < rows:
        time.sleep(0.01)
    assert process.poll() is None, "it came to its end before it was killed"
    process.kill()
    process.wait()
    go_on(out)
    assert outcome(out) == outcome(whole)


def test_a_steered_alpha_begins_again_in_each_stage_and_is_resumed(tmp_path: Path) -> None:
    steered = "stages=[{alpha: 0.5, divergence_target: 0.1, until: 0.5}, {alpha: 0.3, divergence_target: 0.1}]"
    begin(tmp_path / "run", steered)
    alphas, tokens = column(tmp_path / "run", "train/alpha"), column(tmp_path / "run", "time/total_timesteps")
    second = next(update for update, now in enumerate(tokens, start=1) if now >= 150)
    assert alphas[0] == 0.5 and alphas[1] > 0.5 and alphas[second] == 0.3 and alphas[second + 1] != 0.3
    before = trained(tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    shutil.rmtree(newest)
    go_on(tmp_path / "run")
    assert trained(tmp_path / "run") == before


def test_a_last_stage_by_a_measure_ends_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out, "eval_every=40", "eval_every_prompts=2", "learning_rate=1e-12", "stages=[{until: 'plateau(reward, 1)'}]")
    ended = column(out, "time/total_timesteps")[-1]
    assert ended < 300 and len(evaluations(out)) == 2
    with pytest.raises(SettingError, match=r"tokens: 400 .*no better in the last stage's measure"):
        go_on(out, "tokens=400")
    assert column(out, "time/total_timesteps")[-1] == ended


@minutes
def test_a_run_that_its_last_stage_has_ended_goes_on_with_more_patience(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out, "eval_every=40", "eval_every_prompts=2", "learning_rate=1e-12", "stages=[{until: 'plateau(reward, 1)'}]")
    go_on(out, "tokens=400", "stages=[{until: 'plateau(reward, 99)'}]")
    assert column(out, "time/total_timesteps")[-1] >= 400


def test_stages_may_change_before_a_run_goes_on_but_not_lose_the_present_one(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(SettingError, match=r"stages: 2 .*the run is in stage 3; give as many or more"):
        go_on(out, "tokens=400", "stages=[{until: 0.5}, {alpha: 0}]")
    assert outcome(out) == outcome(whole)
    go_on(out, "tokens=400", STAGES.replace("alpha: 0,", "alpha: 0.7,"))
    updates = len(column(whole, "train/alpha"))
    assert set(column(out, "train/alpha")[updates:]) == {0.7}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["eval_every=50", "stages=[{until: 'plateau(truht)'}, {}]"], r"stages\[1\]\.until: 'truht' .*'truth'"),
        (["eval_every=50", "stages=[{until: 'plateau(length)'}, {}]"], r"stages\[1\]\.until: 'length' .*\+length"),
        (["teacher=", "alpha=0", "stages=[{until: 0.5}, {alpha: 0.5}]"], "teacher: None .*alpha is 0.5"),
        (["stages=[{until: 0.5}, {overlong_buffer: 99}]"], "overlong_buffer: 99"),
    ],
)
def test_what_a_later_stage_cannot_have_is_refused_before_the_first(
    settings: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        train.start(read("quickstart", [*SMALL, *settings]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_agent_goes_on_by_other_settings_of_its_objective() -> None:
    small = {"prompts_per_update": 2, "group_size": 2}
    env = make_sb3_vec_env("rlgkd/GroundedSummary-v0", max_new_tokens=8)
    student, teacher = "embedded:grounded-student", "embedded:grounded-teacher"
    agent = agents.Reinforce(student, env, teacher=teacher, alpha=0.5, **small)
    agent.reconfigure(agent.Config(**{**agent.config.flat(), "alpha": 1.0, "divergence": "total_variation"}))
    agent.learn(10)
    assert agent.objective.alpha == 1.0 and agent.objective.divergence.name == "total_variation"
    with pytest.raises(SettingError, match=r"temperature: 0\.5 .*what was built by it is kept"):
        agent.reconfigure(agent.Config(**{**agent.config.flat(), "temperature": 0.5}))
