"""A compression in small: taught, cut, healed and compared, and gone on with where it was stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from on_request import minutes

from rlgkd.scripts.compression import reproduce as module
from rlgkd.scripts.compression.cells import CELL_TOKENS, ONE_SEED, TASKS, THREE_SEEDS, healing_grid
from rlgkd.scripts.compression.reproduce import PARTS, Given, main, reproduce
from rlgkd.scripts.runs import train

SMALL = dataclasses.replace(
    TASKS["docstrings"],
    env="rlgkd/GroundedSummary-v0",
    model="embedded:grounded-student",
    layers=1,
    teacher={"learning_rate": 1e-4, "prompts_per_update": 8},
)
TRIAL = Given(out=Path(), until="healed", tokens=100, prompts=4, cut_prompts=2, jobs=1, quiet=True)


@pytest.mark.parametrize("methods", [THREE_SEEDS, ONE_SEED])
def test_all_ways_to_heal_have_one_student_one_teacher_and_equal_tokens(methods):
    grid = healing_grid(SMALL, methods, 3, teacher="embedded:grounded-teacher", student="embedded:grounded-student")
    same = ("student", "tokens", "learning_rate", "learning_rate_end", "env", "eval_prompts", "threads")
    flat = [cell.settings.flat() for cell in grid.cells]
    assert all(len({str(settings[name]) for settings in flat}) == 1 for name in same)
    assert grid.base.flat()["teacher"] == "embedded:grounded-teacher"  # all are measured by it; SFT has none
    assert {settings["tokens"] for settings in flat} == {CELL_TOKENS}
    texts = {settings["prompts_per_update"] * settings["group_size"] for settings in flat}
    assert texts == {SMALL.healing["prompts_per_update"]}
    assert len({cell.folder for cell in grid.cells}) == len(methods)


def test_a_student_is_taught_cut_and_healed_and_no_part_is_made_twice(tmp_path, monkeypatch, capsys):
    given = dataclasses.replace(TRIAL, out=tmp_path)
    folder = reproduce(SMALL, dataclasses.replace(given, until="teacher"))
    assert sorted(path.name for path in folder.iterdir()) == ["teacher"]
    assert reproduce(SMALL, given) == folder
    student = json.loads((folder / "student" / "config.json").read_text())
    assert student["num_hidden_layers"] == 1
    healed = json.loads((folder / "healed" / "summary.json").read_text())
    assert (folder / "healed" / "model" / "config.json").is_file() and healed
    for name in ("start", "resume"):
        monkeypatch.setattr(train, name, None)
    monkeypatch.setattr(module, "cut", None)
    reproduce(SMALL, given)
    # One that was stopped goes on.
    (folder / "healed" / "summary.json").unlink()
    resumed = []
    monkeypatch.setattr(train, "resume", lambda out, quiet: resumed.append(out))
    reproduce(SMALL, given)
    assert resumed == [folder / "healed"]


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--tasks", "nothing"])
    assert "--tasks: nothing is not one of docstrings" in capsys.readouterr().err
    assert PARTS[-1] == "compared"


@minutes
def test_ways_to_heal_are_compared(tmp_path):
    folder = reproduce(SMALL, dataclasses.replace(TRIAL, out=tmp_path, until="compared"))
    results = json.loads((folder / "three-seeds" / "results.json").read_text())
    assert not results["missing"] and len(results["cells"]) == len(THREE_SEEDS)
