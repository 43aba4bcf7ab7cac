"""Evaluations while a run trains: nothing of training moves, the best model is kept, and a resume is exact.

The behaviours guarded: `eval_every` changes no bit of what is trained; a run that was stopped or killed at any update
and resumed has the evaluations, the best model and the patience of one never stopped; the best model is that of the
newest checkpoint; patience ends a run, and says how to go on; a measure that is not there is refused before training.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from on_request import minutes
from short_runs import SMALL, begin, begin_and_end, crash, evaluations, go_on, interrupt, outcome, trained

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.scripts.config.reading import check, read
from rlgkd.scripts.report.html import write_report
from rlgkd.scripts.report.remarks import remarks
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.goal import Goal, goal_of
from rlgkd.scripts.runs.run_state import Best, RunState, Watched
from rlgkd.statistics import Interval

WATCHED = ["eval_every=60", "eval_every_prompts=4", "keep_best=reward"]


def run(out: Path, *more: str) -> Path:
    """A whole run: evaluated before and after, with its report."""
    train.start(read("quickstart", [*SMALL, *more]), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    return run(tmp_path_factory.mktemp("runs") / "whole", *WATCHED)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "progress.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def guards_of(out: Path) -> dict[str, list[Any]]:
    newest = checkpoint.latest(out / "checkpoints")
    assert newest is not None
    return json.loads((newest / "state.json").read_text())["guards"]


def tokens_of(rows: list[dict[str, float]]) -> list[float]:
    return [row["time/total_timesteps"] for row in rows]


def test_evaluations_change_no_bit_of_what_is_trained(whole: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    begin(without)
    assert trained(without) == trained(whole)
    assert not (without / "evaluations.csv").exists() and not (without / "best").exists()
    newest = checkpoint.latest(without / "checkpoints")
    assert newest is not None and "run" not in json.loads((newest / "state.json").read_text())


def test_there_is_a_row_before_training_at_each_multiple_and_at_the_end(whole: Path) -> None:
    rows = evaluations(whole)
    totals = [0.0, *(float(row["time/total_timesteps"]) for row in rows_of(whole))]
    passed = [after for before, after in pairwise(totals) if after // 60 > before // 60]
    assert tokens_of(rows) == sorted({0.0, *passed, totals[-1]}) and len(rows) > 5
    assert all(row["reward/low"] <= row["reward"] <= row["reward/high"] for row in rows)
    assert all(row["reverse_kl"] > 0 for row in rows)


def test_the_best_model_is_the_one_that_its_row_was_measured_of(whole: Path) -> None:
    rows = evaluations(whole)
    best = max(rows, key=lambda row: row["reward"])
    about = json.loads((whole / "best" / "best.json").read_text())
    assert about == {
        "value": best["reward"],
        "updates": best["time/iterations"],
        "tokens": best["time/total_timesteps"],
    }
    assert about == json.loads((whole / "summary.json").read_text())["held_out"]["best"]
    settings = read(whole / "config.yaml", [f"student={whole / 'best'}"])
    again = train.build_agent(settings).evaluate(split="validation", prompts=4, seed=settings.eval_seed)
    assert again.scores()["reward"].mean == best["reward"]


def test_the_report_shows_them_and_rings_the_best(whole: Path, tmp_path: Path) -> None:
    page = (whole / "report.html").read_text()
    tokens = json.loads((whole / "best" / "best.json").read_text())["tokens"]
    assert "On held-out prompts" in page and "on the same 4 validation prompts each time" in page
    assert f"The ring is the model in the folder <code>best</code>, after {tokens} tokens" in page
    assert f"The best model: {float(json.loads((whole / 'best' / 'best.json').read_text())['value']):.3f}" in page
    out = shutil.copytree(whole, tmp_path / "run")
    (out / "evaluations.csv").write_bytes(b'"' + b"x" * 200_000)
    assert "evaluations.csv is not CSV" in write_report(out).read_text()
    (out / "evaluations.csv").unlink()
    assert "On held-out prompts" not in write_report(out).read_text()


@pytest.mark.parametrize(
    ("end", "update"),
    [
        (interrupt, 3),
        (crash, 4),
        *(pytest.param(end, update, marks=minutes) for end in (interrupt, crash) for update in range(6)),
    ],
)
def test_a_run_that_ended_at_any_update_and_was_resumed_is_the_one_that_was_not(
    end: Callable[[], None], update: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_and_end(tmp_path / "run", *WATCHED, end=end, update=update, monkeypatch=monkeypatch)
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


def test_guards_go_on_with_what_they_have_seen_and_do_not_say_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = ["learning_rate=0.3", "alpha=0.1", "tokens=400"]
    begin(tmp_path / "whole", *given)
    said = [record.getMessage() for record in caplog.records if record.name == "rlgkd.agents.watch"]
    assert any("the student leaves its teacher" in line for line in said)
    caplog.clear()
    late = len(rows_of(tmp_path / "whole")) - 2
    begin_and_end(tmp_path / "run", *given, end=interrupt, update=late, monkeypatch=monkeypatch)
    go_on(tmp_path / "run")
    assert [record.getMessage() for record in caplog.records if record.name == "rlgkd.agents.watch"] == said
    seen = guards_of(tmp_path / "run")
    assert seen == guards_of(tmp_path / "whole") and seen["messages"] == said
    # With another objective, what is usual is not known yet; what was said stays in the summary.
    go_on(tmp_path / "run", "tokens=500", "alpha=0.2")
    changed = guards_of(tmp_path / "run")
    assert changed["messages"][: len(said)] == said
    assert changed["first"][0] not in seen["first"] and len(changed["first"]) < len(seen["first"])


def test_a_model_that_no_checkpoint_knows_of_is_not_the_best(whole: Path, tmp_path: Path) -> None:
    """Killed between the evaluation and its checkpoint, then resumed with settings that train it otherwise."""
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(out / "best", out / ".best.next")
    (out / ".best.next" / "best.json").write_text('{"value": 9.0, "updates": 1, "tokens": 40}')
    go_on(out)
    assert outcome(out) == outcome(whole) and not (out / ".best.next").exists()


def test_a_model_that_waits_is_not_published_where_none_is_kept_any_more(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(out / "best", out / ".best.next")
    (out / ".best.next" / "best.json").write_text('{"value": 9.0, "updates": 1, "tokens": 40}')
    go_on(out, "tokens=330", "keep_best=null", "eval_every=0")
    assert (out / "best" / "best.json").read_bytes() == (whole / "best" / "best.json").read_bytes()
    assert not (out / ".best.next").exists()


def test_a_lost_row_is_that_of_an_older_checkpoint(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    lines = (out / "evaluations.csv").read_text().splitlines(keepends=True)
    (out / "evaluations.csv").write_text("".join(lines[:-1]))
    go_on(out)
    assert outcome(out) == outcome(whole)
    (out / "evaluations.csv").write_text("".join(lines[:2]))
    with pytest.raises(CheckpointError, match=r"evaluations\.csv has 1 of the \d+ evaluations"):
        go_on(out)


def test_patience_ends_a_run_and_more_tokens_alone_do_not_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path / "run", *WATCHED, "patience=2", "learning_rate=1e-12")  # it writes the same texts for ever
    rows = evaluations(out)
    assert len(rows) == 3 and len({row["reward"] for row in rows}) == 1
    said = capsys.readouterr().err
    assert "; the best is " in said and "at 0 tokens; training ends" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["ended_early"] and summary["tokens"] == rows[-1]["time/total_timesteps"] < 300
    assert any("ended early" in remark for remark in remarks(summary))
    before = outcome(out)
    go_on(out)
    assert outcome(out) == before
    with pytest.raises(
        SettingError, match=r"tokens: 400 .*2 evaluations were no better in reward; give a greater patience"
    ):
        go_on(out, "tokens=400")


@minutes
def test_a_run_that_patience_has_ended_goes_on_with_more_of_it(tmp_path: Path) -> None:
    begin(tmp_path / "run", *WATCHED, "patience=2", "learning_rate=1e-12")
    go_on(tmp_path / "run", "tokens=400", "patience=0")
    assert tokens_of(evaluations(tmp_path / "run"))[-1] >= 400


def test_more_tokens_go_on_with_the_best_so_far(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    train.resume(out, ["tokens=400", "alpha_end=0.25"], quiet=True)
    rows, old = evaluations(out), evaluations(whole)
    assert rows[: len(old)] == old and tokens_of(rows)[-1] >= 400
    best = json.loads((out / "best" / "best.json").read_text())
    assert best["value"] == max(row["reward"] for row in rows)


@minutes
def test_a_changed_measure_forgets_the_best_value(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    go_on(out, "tokens=400", "keep_best=-length")
    rows, since = evaluations(out), len(evaluations(whole))
    assert tokens_of(rows)[since] == tokens_of(rows)[since - 1], "measured again as the first of the new ones"
    best = json.loads((out / "best" / "best.json").read_text())
    assert best["value"] == min(row["length"] for row in rows[since:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["keep_best=reward"], "keep_best: 'reward' .*set eval_every"),
        (["eval_every=50", "patience=2"], "patience: 2 .*set keep_best"),
        (["eval_every=50", "keep_best=length"], r"keep_best: 'length' .*write \+length or -length"),
        (["eval_every=50", "keep_best=truht"], "keep_best: 'truht' .*'truth'"),
        (["eval_every=50", "eval_every_split=held"], "eval_every_split: 'held' .*train, validation, test"),
        (["eval_split=held"], "eval_split: 'held' .*train, validation, test"),
    ],
)
def test_what_could_not_be_watched_is_refused_before_training(settings: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        run(tmp_path / "run", *settings)
    assert not (tmp_path / "run").exists()


def test_a_goal_has_the_direction_of_the_reports_or_the_one_that_is_written() -> None:
    assert [goal_of(text, "x").sign for text in ("reward", "reverse_kl", "my_own", "-my_own", "+length")] == [
        1,
        -1,
        1,
        -1,
        1,
    ]
    less = Goal("x", -1)
    assert less.better(1.0, None) and less.better(0.5, 1.0) and not less.better(1.0, 1.0)
    assert not less.better(math.nan, None) and not less.better(-math.inf, 0.0)


def test_the_state_counts_what_is_no_better_and_comes_back_from_json() -> None:
    state, goal = RunState(), Goal("reward")
    assert state.due(0, 50) and not state.due(0, 0)
    for tokens, value in ((0, 0.1), (55, 0.3), (101, math.nan), (150, 0.3)):
        scores = {"reward": Interval(value)}
        state = state.after_evaluation(scores, keep_best=goal, stage=None, updates=tokens // 10, tokens=tokens)
    assert state == RunState(
        evaluations=4, evaluated=150, watched=Watched(best=Best(value=0.3, updates=5, tokens=55), since=2)
    )
    assert state.out_of_patience(2) and not state.out_of_patience(3) and not state.out_of_patience(0)
    assert not state.due(199, 50) and state.due(200, 50)
    assert RunState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert RunState.from_json({}) == RunState()
    assert state.after_changes(["alpha", "tokens"]) == state
    assert state.after_changes(["env_settings.reward"]) == RunState(evaluations=4)
    assert state.after_changes(["teacher_temperature"]) == RunState(evaluations=4)
    state = state.entered({}, None, updates=0, tokens=0)
    scores = {"reward": Interval(0.5)}
    state = state.entered(scores, goal, updates=4, tokens=200)
    assert state.stage == 1 and state.stage_watched == Watched(best=Best(value=0.5, updates=4, tokens=200))
    assert RunState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert state.after_changes(["stages"]).stage_watched == Watched()
    for bad in (
        {"evaluations": -1},
        {"watched": {"since": "2"}},
        {"more": 1},
        {"watched": {"best": {"value": "x"}}},
        {"stages": [{"updates": "3", "tokens": 1}]},
        {"stages": [{"updates": 3}]},
        {"stage_watched": 3},
    ):
        with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
            RunState.from_json(bad)


def test_a_mean_over_fewer_prompts_is_not_the_best() -> None:
    goal, state = Goal("reward"), RunState()

    def after(state: RunState, value: float, *unknown: int) -> RunState:
        lacks = {"reward": unknown} if unknown else {}
        scores = {"reward": Interval(value)}
        tokens = 10 * state.evaluations
        return state.after_evaluation(scores, keep_best=goal, stage=goal, unknown=lacks, updates=0, tokens=tokens)

    def best(state: RunState) -> float:
        assert state.watched == state.stage_watched and state.watched.best is not None
        assert RunState.from_json(json.loads(json.dumps(state.to_json()))) == state
        return state.watched.best.value

    first = after(state, 0.5, 3)
    assert best(first) == 0.5 and first.watched.unknown == (3,)
    assert best(after(first, 0.6, 3)) == 0.6, "over the same prompts"
    assert best(after(first, 0.9, 2)) == 0.5 and best(after(first, 0.9, 2, 3)) == 0.5
    whole = after(first, 0.4)
    assert best(whole) == 0.4, "over all prompts: the value over fewer cannot be compared with it"
    later = after(after(whole, 0.9, 1), math.nan, 0, 1, 2, 3)
    assert best(later) == 0.4 and later.watched.since == 2 and later.watched.unknown == ()
    with pytest.raises(ValueError, match="counts"):
        RunState.from_json({"watched": {"unknown": "x"}})


def test_a_reward_that_fails_at_the_hard_prompt_makes_no_model_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails_later.py").write_text(
        "calls = 0\n\n\ndef reward(completions, prompts):\n    global calls\n    calls += 1\n"
        "    hard = [prompt == max(PROMPTS) for prompt in prompts]\n"
        "    return [(float('nan') if calls > 3 else 0.0) if one else 1.0 for one in hard]\n\n\n"
        "PROMPTS = [f' Say {n}.' for n in range(4)]\n"
    )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"prompt": f" Say {n}."}) + "\n" for n in range(4)))
    settings = [
        "env=rlgkd/Dataset-v0",
        f"env_settings.data={tmp_path / 'data.jsonl'}",
        "env_settings.split_shares=null",
        f"env_settings.reward={tmp_path / 'fails_later.py'}:reward",
        "env_settings.max_failed_rewards=1",
        "env_settings.max_prompt_tokens=16",
        "student=embedded:grounded-student",
        "teacher=",
        "alpha=0",
        *WATCHED,
        "learning_rate=1e-12",
        "tokens=120",
    ]
    out = run(tmp_path / "run", *settings)
    rows = evaluations(out)
    assert rows[0]["reward"] == 0.75 and rows[-1]["reward"] == 1.0
    assert json.loads((out / "best" / "best.json").read_text()) == {"value": 0.75, "updates": 0, "tokens": 0}
    said = capsys.readouterr().err
    assert "of which it is not known for 1 that the best has, so it cannot be the best; the best is 0.750" in said


def test_a_run_of_other_settings_reads_them_from_yaml() -> None:
    settings = check({"agent": "Reinforce", "eval_every": 100, "keep_best": "reward", "patience": 3})
    assert (settings.eval_every, settings.keep_best, settings.patience) == (100, "reward", 3)
