"""What an older rlgkd left on a disk is opened, goes on, and comes to the same: see old_runs/make.py for what it is.

The behaviours guarded: a run that was stopped goes on where it was; a finished one is evaluated and asked; saved agents
keep their settings, their texts and how they train on; a finished comparison is not run again. Only the command line,
the agents and the files themselves are looked at, so that these tests need no change where modules move.

Numbers are compared to what another machine's rounding leaves of them, texts exactly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from old_runs import make

EXPECTED = json.loads(make.EXPECTED.read_text())
COLUMNS_OF_TEXTS = ("step", "key", "sample", "source", "prompt", "completion", "length", "stop")


def close(values: Any) -> Any:
    return pytest.approx(values, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.fixture(autouse=True)
def no_traces_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # it would leave its own behind
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Everything in a folder that may be written to, somewhere else than it was made."""
    return Path(shutil.copytree(make.HERE, tmp_path / "old_runs"))


def texts(run: Path) -> list[tuple[Any, ...]]:
    records = map(json.loads, (run / "rollouts.jsonl").read_text().splitlines())
    return [tuple(record[column] for column in COLUMNS_OF_TEXTS) for record in records]


def columns_of(row: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What the old row tells too: today's has more columns."""
    return {name: row[name] for name in old}


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def means(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: score["mean"] for name, score in scores.items()}


def said(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an old file says something of.

    Null is the agent's or the variant's own there, for which a file of today has the value; and today's has no
    parameters of variants that were not chosen. Paths are left out.
    """
    return {name: value for name, value in settings.items() if value not in (None, False) and "/" not in str(value)}


def numbers(state: Any) -> list[float]:
    """Of the state of training, in their order: their names have changed."""
    if isinstance(state, dict | list):
        return [number for part in (state.values() if isinstance(state, dict) else state) for number in numbers(part)]
    return [] if state is None else [state]


@pytest.mark.parametrize("name", make.RUNS)
def test_a_stopped_run_goes_on_and_ends_like_the_one_that_was_not_stopped(name: str, copied: Path) -> None:
    run, never_stopped = copied / "stopped" / name, make.FINISHED / name
    assert len(texts(run)) < len(texts(never_stopped)) and not (run / "summary.json").exists()
    make.command_line("train", "--resume", str(run), "--quiet")
    assert texts(run) == texts(never_stopped)
    found = zip(make.rows(run), make.rows(never_stopped), strict=True)
    assert all(columns_of(row, expected) == close(expected) for row, expected in found)
    ends, ended = (json.loads((folder / "summary.json").read_text()) for folder in (run, never_stopped))
    for key in ("tokens", "updates", "rewards"):
        assert ends[key] == ended[key]
    assert ends["alpha_end"] == close(ended["alpha_end"])
    for key in ("before", "after", "teacher_scores", "change"):
        assert means(ends[key]) == close(means(ended[key]))
    names, expected_names = ({path.name for path in (folder / "model").iterdir()} for folder in (run, never_stopped))
    assert names - {"README.md"} == expected_names  # the model's card is new


@pytest.mark.parametrize("name", make.RUNS)
def test_a_finished_run_is_evaluated_and_asked(name: str) -> None:
    run, expected = make.FINISHED / name, EXPECTED["finished"][name]
    assert len(expected["scores"]) >= 5
    assert make.scores(run) == pytest.approx(expected["scores"], rel=1e-3, abs=2e-4)  # of four digits
    assert make.text(run) == expected["text"]


@pytest.mark.parametrize("name", make.SAVED)
def test_a_saved_agent_has_its_settings_and_says_and_learns_what_it_would_have(name: str) -> None:
    found, expected = make.behaviour(name), EXPECTED["agents"][name]
    assert columns_of(found["update"], expected["update"]) == close(expected["update"])
    assert (found["before"], found["after"]) == (expected["before"], expected["after"])


@pytest.mark.parametrize("name", make.SAVED)
def test_a_saved_agent_is_saved_again_as_it_was(name: str, tmp_path: Path) -> None:
    make.opened(name).save(tmp_path)
    old, new = (json.loads((folder / "rlgkd_agent.json").read_text()) for folder in (make.AGENTS / name, tmp_path))
    assert {name: new["settings"][name] for name in said(old["settings"])} == said(old["settings"])
    assert new["agent"] == old["agent"]
    assert numbers(new.get("state", new.get("counters"))) == numbers(old["counters"])
    assert weights(tmp_path) == weights(make.AGENTS / name)


def test_the_saved_agents_hold_what_their_names_promise() -> None:
    saved = {name: json.loads((make.AGENTS / name / "rlgkd_agent.json").read_text())["settings"] for name in make.SAVED}
    for name, (_, settings) in make.SAVED.items():
        assert {key: saved[name][key] for key in settings} == settings
    assert saved["reinforce"]["clip_low"] is None and saved["t5"]["beta"] is None
    assert (make.AGENTS / "ppo" / "value.safetensors").exists()
    assert (make.AGENTS / "t5" / "teacher" / "model.safetensors").exists()


def test_a_finished_comparison_is_read_and_not_run_again(copied: Path) -> None:
    out = copied / "compared"
    (out / "results.json").unlink()
    with pytest.raises(RuntimeError, match="its policy_reduction is 'sequence_sum'"):  # today's recipe is another one
        make.command_line(*make.COMPARISON, "--out", str(out))
    its_own = ("alpha=0.9", "policy_reduction=sequence_sum", "divergence_reduction=sequence_mean")
    make.command_line(*make.COMPARISON, *its_own, "--out", str(out))
    assert not [*out.rglob("progress.csv")], "a cell was trained anew"
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (out, make.COMPARED))
    before, today = expected.pop("settings"), found.pop("settings")
    others = {"gae_lambda", "value_coefficient", "value_clip", "normalise_advantages"}  # PPO's, which it is not
    assert {name: today[name] for name in said(before) if name not in others} == {
        name: value for name, value in said(before).items() if name not in others
    }
    assert found == expected
