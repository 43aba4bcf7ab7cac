"""The comparison of methods: its cells share what makes them comparable, and its verdicts say what the runs say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from on_request import minutes

from rlgkd.scripts.frontier import findings
from rlgkd.scripts.frontier.cells import ALPHAS, CONTROL, DISTILLATION, EQ_5, OPD, RL, TASKS, eq_5, methods, task_grid
from rlgkd.scripts.frontier.findings import best_alpha, differences, speeds, tokens_to, verdict
from rlgkd.scripts.frontier.page import write_page
from rlgkd.scripts.frontier.reproduce import main
from rlgkd.scripts.reproduction.curves import held_out_curve


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(findings, "RESAMPLES", 1000)


SAME = ("env", "student", "tokens", "eval_prompts", "eval_seed", "threads", "prompts_per_update", "group_size")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_all_cells_share_what_makes_them_comparable(task):
    grid = task_grid(task, 5, "a-teacher" if task.teacher_from else "")
    assert all(len({str(cell.settings.flat()[name]) for cell in grid.cells}) == 1 for name in SAME)
    rate = task.settings["learning_rate"]
    rates = {cell.name: cell.settings.algorithm.optimizer.learning_rate for cell in grid.cells}
    assert rates.pop(CONTROL) == pytest.approx(0.2 * rate) and set(rates.values()) == {rate}
    teachers = {cell.settings.teacher for cell in grid.cells if cell.name != CONTROL}
    assert teachers == {grid.base.teacher} and grid.base.teacher
    assert task.quality != "reward"


def test_a_methods_settings_are_its_recipes():
    found = methods()
    assert found["IW-OPD"].settings["gate"] == "iw_opd" and found["IW-OPD"].settings["prefix_gain"] == 0.5
    assert found["SG-OPD"].settings == {**found["RA-OPD"].settings, "gate": "sg_opd"}
    assert found[RL].settings["alpha"] == 0 and [part["name"] for part in found["OPD then RL"].settings["stages"]]
    assert all(method.baseline in {*found, EQ_5} for method in found.values() if method.claim)


def results(shift: dict[str, float]) -> dict:
    """Return 3 seeds and 50 prompts of each cell, with values about a half plus the cell's shift."""
    rng = np.random.default_rng(0)

    def run(name: str) -> dict:
        return {"exact": (0.5 + shift.get(name, 0.0) + 0.01 * rng.normal(size=50)).tolist()}

    score = {"exact": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    cells = [
        {"name": name, "scores": score, "runs": [{"seed": s, "measures": run(name)} for s in range(3)]}
        for name in methods()
    ]
    curves = {name: {"tokens": [0, 100], "exact": [0.0, 0.5 + shift.get(name, 0.0)]} for name in methods()}
    references = {name: {"scores": score} for name in ("start", "teacher")}
    return {
        **{"quality": "exact", "cells": cells, "curves": curves, "references": references},
        **{"tokens": 100, "prompts": 50},
    }


def test_a_verdict_is_the_sign_of_the_interval_as_the_paper_has_it():
    found = results({"IW-OPD": 0.1, "RA-OPD": -0.1, "TIP": -0.1, "RL then OPD": -0.1, eq_5(0.5): 0.02})
    assert best_alpha(found) == eq_5(0.5)
    said = {name: verdict(found, name)[1].split(":")[0] for name in methods()}
    assert said["IW-OPD"] == "yes" and said["RA-OPD"] == "no, the reverse" and said["SG-OPD"] == "not clear"
    assert said["TIP"] == "no, clearly less" and said["Prefix OPD"] == "not contradicted"
    assert said["RL then OPD"] == "yes" and said["OPD then RL"] == "no, the reverse"  # than Eq. 5 at its best
    by_column = differences(found)["IW-OPD"]
    assert set(by_column) == {DISTILLATION, OPD, RL, EQ_5, CONTROL}
    assert by_column[OPD].interval.mean == pytest.approx(0.1, abs=0.01) and by_column[OPD].text.endswith("**")
    assert by_column[EQ_5].interval.mean == pytest.approx(0.08, abs=0.01)


def test_a_corrected_interval_is_wider():
    one = differences(results({"TIP": 0.001}))["TIP"][OPD]
    assert one.corrected.high - one.corrected.low > 1.3 * (one.interval.high - one.interval.low)


def test_tokens_to_a_level_are_on_the_line_between_two_measurements():
    assert tokens_to({"tokens": [0, 100], "exact": [0.2, 0.4]}, "exact", 0.1) == 0
    assert tokens_to({"tokens": [0, 100], "exact": [0.2, 0.4]}, "exact", 0.5) == float("inf")
    found = speeds(results({"TIP": 0.5, OPD: -0.1}))
    assert found[DISTILLATION] == 1 and found["TIP"] == 2 and found[OPD] == 0


def test_the_page_has_every_task_method_and_alpha(tmp_path: Path):
    page = write_page("Translate", results({}), tmp_path).read_text()
    assert all(page.count(f"\n| {name} |") in (2, 3) for name in methods())
    assert len(json.loads((tmp_path / "translate.json").read_text())) == len(methods())
    assert (tmp_path / "translate.png").is_file() and len(ALPHAS) == 5


def test_a_held_out_curve_is_a_mean_over_seeds_at_the_same_tokens(tmp_path: Path):
    """A seed whose stage ended has measured once more; without it its values would be 0, 0.5 and 1 at 0, 50 and 100."""
    grid = task_grid(TASKS["Translate"], 2, tokens=400)
    cell = grid.cells[0]
    rows = {0: [(0, 0.0), (52, 0.52), (104, 1.04)], 1: [(0, 0.0), (30, 0.3), (60, 0.6), (110, 1.1)]}
    for seed in grid.seeds:
        file = tmp_path / cell.run_folder(seed) / "evaluations.csv"
        file.parent.mkdir(parents=True)
        lines = [f"{tokens},{exact},{exact}" for tokens, exact in rows[seed]]
        file.write_text("\n".join(["time/total_timesteps,exact,exact/low", *lines, ""]))
        assert held_out_curve(cell, grid, tmp_path) == {}  # none has ended
    for seed in grid.seeds:
        (tmp_path / cell.run_folder(seed) / "measured.json").touch()
    curve = held_out_curve(cell, grid, tmp_path)
    assert curve["tokens"] == [0, 50, 100, 150, 200, 250, 300, 350, 400]
    assert curve["exact"][:3] == pytest.approx([0.0, 0.5, 1.0]) and curve.keys() == {"tokens", "exact"}


@minutes
def test_every_cell_trains(tmp_path: Path):
    small = ["--seeds", "1", "--tokens", "1300", "--prompts", "4", "--quiet"]
    main(["--tasks", "Translate", *small, "--out", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")])
    assert "OPD then RL" in (tmp_path / "docs" / "translate.md").read_text()
