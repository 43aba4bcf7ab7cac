"""The paper in miniature: its cells are the recipes, and a claim says what its interval says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from on_request import minutes

from rlgkd.scripts.paper.cells import (
    ALPHAS,
    BASELINES,
    COMPARED_DIVERGENCES,
    RL_RATE,
    TASKS,
    cell_settings,
    on_policy,
    paper_grid,
    rl_gkd,
)
from rlgkd.scripts.paper.claims import CLAIMS, check_claims
from rlgkd.scripts.paper.reproduce import main


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_all_cells_share_what_makes_them_comparable(task):
    grid = paper_grid(task, 5)
    same = ("env", "student", "tokens", "eval_prompts", "eval_seed", "threads", "temperature")
    assert all(len({str(cell.settings.flat()[name]) for cell in grid.cells}) == 1 for name in same)
    rates = {(cell.settings.agent, cell.settings.algorithm.optimizer.learning_rate) for cell in grid.cells}
    rate = task.settings["learning_rate"]
    assert rates == {("Distill", rate), ("Reinforce", RL_RATE * rate)}
    assert list(grid.seeds) == [0, 1, 2, 3, 4]
    anchored = {cell.name for cell in grid.cells if cell.settings.teacher == task.settings["student"]}
    assert anchored == {rl_gkd(alpha, "start") for alpha in ALPHAS if alpha}


def test_methods_are_their_recipes():
    found = cell_settings(TASKS["Translate"], 1000)
    assert all(found[name]["student_fraction"] == 0.0 for name in ("SFT", "SeqKD", "supervised KD"))
    assert found["SeqKD"]["off_policy"] == "teacher" and found["SFT"]["estimator"] == "sampled"
    assert found["ImitKD"]["student_fraction_end"] == 1.0 and found["f-distill"]["divergence"] == "total_variation"
    assert all("student_fraction" not in found[on_policy(name)] for name in COMPARED_DIVERGENCES)


def results(task: str, shift: dict[str, float]) -> dict:
    """Return 3 seeds and 50 prompts of each cell, with values about a half plus the cell's shift."""
    rng = np.random.default_rng(0)

    def run(name: str) -> dict:
        values = 0.5 + shift.get(name, 0.0) + 0.01 * rng.normal(size=50)
        return {measure: values.tolist() for measure in ("reward", "rouge2", "self_bleu")}

    names = list(cell_settings(TASKS[task], 1000))
    return {
        "env": f"rlgkd/{task}-v0",
        "cells": [{"name": name, "runs": [{"seed": s, "measures": run(name)} for s in range(3)]} for name in names],
        "colder": {"0.3": {on_policy(name): [run("") for _ in range(3)] for name in COMPARED_DIVERGENCES}},
    }


def test_a_claim_is_shown_where_its_interval_is_above_zero_and_reversed_where_below():
    checked = check_claims(results("GroundedSummary", {on_policy("JSD(0.9)"): 0.1, "SFT": 0.3}))
    *verdicts, same_divergence = (claim["verdict"] for claim in checked["1. Methods"])
    expected = {**dict.fromkeys(BASELINES, "shown"), "SFT": "the reverse is shown"}
    assert dict(zip(BASELINES, verdicts, strict=True)) == expected
    assert same_divergence == "not shown"
    equal = check_claims(results("GroundedSummary", {}))
    assert [claim["verdict"] for claim in equal["5. Few prompts"]] == ["not shown"] * 2
    assert equal.keys() == CLAIMS.keys()


@minutes
def test_a_trial_of_one_task_runs_to_its_page_and_not_again(tmp_path):
    folders = ["--out", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    trial = [*folders, "--tasks=Translate", "--seeds=1", "--tokens=200", "--prompts=4", "--quiet"]
    main(trial)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert all(experiment in page for experiment in CLAIMS)
    figures = {path.stem for path in (tmp_path / "docs").glob("*.png")}
    assert figures == {"methods", "mixtures", "diversity", "anchors"}
    claims = json.loads((tmp_path / "docs" / "claims.json").read_text())
    assert claims["Translate"].keys() == CLAIMS.keys()
    measured = [path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("measured.json")]
    main(trial)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("measured.json")] == measured
