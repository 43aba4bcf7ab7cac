"""A compression in small: taught, cut, healed, compared, gone on with where it was stopped, and written as a page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from on_request import minutes

from rlgkd.scripts.comparison.run_cell import MEASURED
from rlgkd.scripts.compression import reproduce as module
from rlgkd.scripts.compression.cells import (
    CELL_TOKENS,
    FIRST_FOUR,
    ONE_SEED,
    OURS,
    TASKS,
    THREE_SEEDS,
    Part,
    healing_grid,
)
from rlgkd.scripts.compression.page import gathered, write_page
from rlgkd.scripts.compression.reproduce import PARTS, Given, grids_of, main, reproduce
from rlgkd.scripts.compression.speed import speed
from rlgkd.scripts.runs import train

PAIR = {name: FIRST_FOUR[name] for name in ("SFT", OURS)}
SMALL = dataclasses.replace(
    TASKS["docstrings"],
    env="rlgkd/GroundedSummary-v0",
    model="embedded:grounded-student",
    layers=1,
    teacher={"learning_rate": 1e-4, "prompts_per_update": 8},
    measures={"rouge2": "ROUGE-2", "reward": "reward"},
    parts={
        "three-seeds": Part(methods=PAIR, seeds=2),
        "one-seed": Part(methods={"forward KL": ONE_SEED["forward KL"]}, seeds=1),
    },
)
TRIAL = Given(
    out=Path(), docs=Path(), until="healed", tokens=100, prompts=4, cut_prompts=2, speed_pairs=1, jobs=1, quiet=True
)


@pytest.mark.parametrize("methods", [THREE_SEEDS, ONE_SEED])
def test_all_ways_to_heal_have_one_student_one_teacher_and_equal_tokens(methods):
    models = {"teacher": "embedded:grounded-teacher", "student": "embedded:grounded-student"}
    grid = healing_grid(SMALL, Part(methods=methods, seeds=3), **models)
    same = ("student", "tokens", "learning_rate", "learning_rate_end", "env", "eval_prompts", "eval_every", "threads")
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
    assert sorted(path.name for path in folder.iterdir()) == ["measured", "teacher"]
    assert reproduce(SMALL, given) == folder
    student = json.loads((folder / "student" / "config.json").read_text())
    assert student["num_hidden_layers"] == 1
    healed = json.loads((folder / "healed" / "summary.json").read_text())
    assert (folder / "healed" / "model" / "config.json").is_file() and healed
    for name in ("start", "resume"):
        monkeypatch.setattr(train, name, None)
    for name in ("cut", "speed"):
        monkeypatch.setattr(module, name, None)
    reproduce(SMALL, given)
    # Without a comparison the page has the models, their speed and what is missing.
    results = gathered(SMALL, folder, grids_of(SMALL, folder, given))
    assert results["missing"] == [f"{name} seed {seed}" for name in PAIR for seed in range(2)] + ["forward KL seed 0"]
    page = write_page({"small": results}, {"small": SMALL}, tmp_path / "docs").read_text()
    assert "Missing so far: SFT seed 0" in page and "| SFT | missing |" in page
    assert "The healed student keeps" in page and "| 8 | " in page
    assert page.count("| reference |") == 4  # all of the four prompts
    results["models"][1]["runs"][0]["measures"]["rouge2"] = [0.0] * 4
    page = write_page({"small": results}, {"small": SMALL}, tmp_path / "docs").read_text()
    assert "The teacher has not learned the task: its ROUGE-2 is 0." in page
    # One that was stopped goes on.
    (folder / "healed" / "summary.json").unlink()
    resumed = []
    monkeypatch.setattr(train, "resume", lambda out, quiet: resumed.append(out))
    reproduce(SMALL, given)
    assert resumed == [folder / "healed"]


def test_two_models_are_timed_in_pairs_on_the_same_prompts(tmp_path):
    names = {"one": "embedded:grounded-student", "other": "embedded:grounded-teacher"}
    folders = {name: _saved(model, tmp_path / name) for name, model in names.items()}
    found = speed(folders, [[1, 2, 3], *[[4, 5]] * 7], new_tokens=4, pairs=3)
    assert [row["rows"] for row in found["speed"]] == [1, 8]
    for row in found["speed"]:
        assert len(row["ratios"]) == 3 and row["times_as_fast"] == pytest.approx(row["ratios"][1], abs=0.006)
        assert row["tokens_per_second"].keys() == names.keys()
    sizes = found["models"]
    assert sizes["other"]["parameters"] > 5 * sizes["one"]["parameters"]
    assert all(size["bytes"] > 2 * size["parameters"] for size in sizes.values())


def _saved(model: str, folder: Path) -> str:
    from rlgkd.lm import load, load_tokenizer, save

    save(load(model), load_tokenizer(model), folder)
    return str(folder)


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--tasks", "nothing"])
    assert "--tasks: nothing is not one of docstrings, extraction" in capsys.readouterr().err
    assert PARTS[-1] == "compared"


@minutes
def test_ways_to_heal_are_compared_and_the_page_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TASKS", {"small": SMALL})
    small = ["--tokens", "100", "--prompts", "4", "--cut-prompts", "2", "--speed-pairs", "1", "--jobs", "1", "--quiet"]
    monkeypatch.chdir(tmp_path)
    main(small)
    folder, docs = tmp_path / "runs/compression/docstrings", tmp_path / "docs/compression"
    page, kept = (docs / "results.md").read_text(), json.loads((docs / "results.json").read_text())["docstrings"]
    assert "Missing" not in page and not kept["missing"] and "seconds of training" in page
    assert f"| {OURS} less SFT |" in page and (docs / "docstrings.png").is_file()
    measures = kept["scores"][OURS]
    assert {"rouge2", "teacher_rougeL", "ended", "reverse_kl", "reverse_kl_data", "forward_kl_data"} <= measures.keys()
    assert kept["scores"]["teacher"]["teacher_rougeL"]["mean"] == 1.0  # its own texts
    # The comparison did not measure teacher and student again, and its own way finds the same.
    shared = [path.parent for path in folder.rglob(f"references/*/{MEASURED}")]
    assert len(shared) == 4 and not any((path / "log.txt").exists() for path in shared)
    teacher = folder / "measured" / "teacher" / MEASURED
    again = json.loads((folder / "three-seeds" / "references" / "teacher" / MEASURED).read_text())
    assert again == json.loads(teacher.read_text())
