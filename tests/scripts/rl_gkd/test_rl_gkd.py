"""RL, distillation and mixtures: cells alike in all else, a claim that its intervals bear, a page of what is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from on_request import minutes

from rlgkd.scripts.rl_gkd import reproduce as module
from rlgkd.scripts.rl_gkd.cells import DISTILLATION, MIXTURES, RL, STAGES, TASKS, rl_gkd_grid
from rlgkd.scripts.rl_gkd.page import best_mixture, claim, write_page
from rlgkd.scripts.rl_gkd.reproduce import main

TASK = TASKS["payments"]
SAME = (
    "env",
    "student",
    "teacher",
    "tokens",
    "learning_rate",
    "prompts_per_update",
    "group_size",
    "lora_rank",
    "epochs",
)


def test_the_cells_differ_in_alpha_and_stages_alone() -> None:
    models = {"start": "embedded:grounded-student", "teacher": "embedded:grounded-teacher"}
    grid = rl_gkd_grid(TASK, 3, **models)
    flat = {cell.name: cell.settings.flat() for cell in grid.cells}
    assert all(len({str(settings[name]) for settings in flat.values()}) == 1 for name in SAME)
    assert [flat[name]["alpha"] for name in (RL, *MIXTURES, DISTILLATION)] == [0.0, 0.1, 0.25, 0.5, 1.0]
    assert {settings["divergence"] for settings in flat.values()} == {"reverse_kl"}
    assert [stage["alpha"] for stage in flat[STAGES]["stages"]] == [1.0, 0.0]
    assert TASK.quality != "reward" and TASK.quality in TASK.measures


def results(**right: float) -> dict:
    """Three seeds and 40 prompts of each model and cell, with these means of `right` and some noise; the reward is 0.5,
    but of RL alone 0.9."""
    rng = np.random.default_rng(0)
    names = {"rl": RL, "kd": DISTILLATION, "low": MIXTURES[0], "mix": MIXTURES[1], "start": "start"}

    def made(key: str, value: float) -> dict:
        seeds = [None] if key == "start" else range(3)
        rows = [(value + 0.02 * rng.normal(size=40)).tolist() for _ in seeds]
        reward = [0.9 if key == "rl" else 0.5] * 40
        texts = [{"prompt": "a note", "reference": "a line", "text": "b | c"}] * 40
        runs = [
            {"seed": seed, "measures": {"right": row, "reward": reward}, "texts": texts}
            for seed, row in zip(seeds, rows, strict=True)
        ]
        return {"name": names[key], "runs": runs}

    cells = [made(key, value) for key, value in right.items() if key != "start"]
    there = {cell["name"] for cell in cells}
    cells += [{"name": name, "runs": []} for name in (RL, *MIXTURES, DISTILLATION, STAGES) if name not in there]
    curves = {
        names[key]: {"tokens": [0.0, 1.0], "right": [0.1, value], "reward": [0.1, 0.5], "seconds": [0.0, 9.0]}
        for key, value in right.items()
        if key != "start"
    }
    models = [
        {"name": "the model as it came", "runs": []},
        made("start", right["start"]),
        {"name": "teacher", "runs": []},
    ]
    return {"models": models, "cells": cells, "missing": ["teacher"], "curves": curves}


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ({"rl": 0.2, "kd": 0.4, "mix": 0.6}, "beats both ends"),
        ({"rl": 0.2, "kd": 0.6, "mix": 0.6}, "beats reward alone and is level with distillation alone"),
        ({"rl": 0.6, "kd": 0.4, "mix": 0.6}, "beats distillation alone and is level with reward alone"),
        ({"rl": 0.2, "kd": 0.8, "mix": 0.6}, "is below one of the ends"),
        ({"rl": 0.6, "kd": 0.6, "mix": 0.6}, "is level with both ends"),
    ],
)
def test_the_claim_is_what_the_intervals_bear(right: dict[str, float], said: str) -> None:
    found = results(**right, low=0.3, start=0.3)
    assert best_mixture(found, "right") == MIXTURES[1]
    sentence = claim(found, "right", "the line itself")
    assert sentence.startswith(f"The mixture with {MIXTURES[1]} {said} in the line itself: ")
    verb = {0.2: "falls", 0.6: "rises too"}[right["rl"]]
    assert f"the reward rises (+0.400 (0.400 to 0.400) *) and the line itself {verb} (" in sentence


def test_the_page_says_what_is_missing_and_waits_with_the_claim(tmp_path: Path) -> None:
    found = results(rl=0.2, mix=0.6, start=0.3)
    page = write_page({"payments": found}, {"payments": TASK}, tmp_path).read_text()
    assert "Missing so far: teacher." in page and f"| {DISTILLATION} | missing |" in page
    assert "The claim waits for" in page and f"| {MIXTURES[1]} less {RL} |" in page
    assert page.count("| reference | ` a line ` |") == 20 and r"` b \| c `" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"payments.png", "payments-frontier.png"}
    assert json.loads((tmp_path / "results.json").read_text())["payments"]["missing"] == ["teacher"]


@minutes
def test_a_trial_runs_to_its_page_and_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(
        TASK,
        env="rlgkd/GroundedSummary-v0",
        env_settings={},
        model="embedded:grounded-student",
        start={"tokens": 100, "prompts_per_update": 4},
        teacher={"tokens": 200, "prompts_per_update": 4},
        quality="rouge2",
        measures={"reward": "reward", "rouge2": "ROUGE-2"},
    )
    monkeypatch.setattr(module, "TASKS", {"payments": small})
    monkeypatch.chdir(tmp_path)
    trial = ["--seeds", "1", "--tokens", "400", "--prompts", "4", "--jobs", "1", "--quiet"]
    main(trial)
    page = (tmp_path / "docs/rl-gkd/results.md").read_text()
    assert "Missing" not in page and "The mixture with alpha " in page and f"| {STAGES} | 1 |" in page
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("measured.json")}
    assert len(measured) == 6 + 3 + 2  # cells, models, and what the comparison is given of them
    main(trial)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("measured.json")} == measured
