"""Time to quality: curves of a real run, levels that both sides reach, cells that are never run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlgkd.errors import SettingError
from rlgkd.scripts.benchmarks import quality as module
from rlgkd.scripts.benchmarks.held_out import own_forward
from rlgkd.scripts.benchmarks.quality import QualitySettings, quality, seconds_to


def test_the_embedded_student_is_measured_between_updates_and_a_cell_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"updates": 2, "measure_every": 1, "held_out": 4, "batch": 4, "new_tokens": 12, "threads": 1}
    given = QualitySettings(**settings, out=str(tmp_path))
    found = quality(given)
    curve = found["distill"]["curves"]["rlgkd"]
    assert [point["update"] for point in curve] == [0, 1, 2]
    seconds = [point["seconds"] for point in curve]
    assert seconds[0] == 0 < seconds[1] < seconds[2]
    assert all(point["reverse_kl"] > 0 and 0 <= point["reward"] <= 1 for point in curve)
    assert len({point["reverse_kl"] for point in curve}) == 3
    in_half = quality(QualitySettings(**settings, precisions=["bfloat16"], out=str(tmp_path)))
    assert in_half["distill"]["curves"]["rlgkd"][1:] != curve[1:]

    def refuse(*_: object) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(module, "run_job", refuse)
    assert quality(given) == found
    with pytest.raises(SettingError, match=r"updates: 3 does not work; the cells in .* have 2; give another `out`"):
        quality(QualitySettings(**{**settings, "updates": 3}, out=str(tmp_path)))
    with pytest.raises(SettingError, match="batch: 6 does not work; give a multiple of 4"):
        quality(QualitySettings(batch=6, out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def curve(*values: float, pace: float = 10.0) -> list[dict[str, float]]:
    return [{"seconds": pace * n, "reverse_kl": value, "reward": -value} for n, value in enumerate(values)]


def pretend(
    monkeypatch: pytest.MonkeyPatch, runs: Mapping[tuple[str, float, str], tuple[list[dict[str, float]], float]]
) -> list[tuple[str, float, str, int]]:
    """Let a cell have its curve and the seconds of a step from a table; returns the cells as they are run."""
    ran = []

    def run(job: Mapping[str, Any], runner: str, folder: Path) -> dict[str, object]:
        cell = "trl" if "peer" in runner else "rlgkd", job["learning_rate"], job["precision"]
        ran.append((*cell, job["seed"]))
        points, pace = runs[cell]
        return {"curve": points, "seconds": [pace] * 2, "peak_mb": 1.0}

    monkeypatch.setattr(module, "run_job", run)
    monkeypatch.setattr(module, "_shared", lambda settings, folder: {"there": True})
    return ran


RUNS = {
    ("rlgkd", 0.1, "float32"): (curve(4.0, 2.0, 1.0), 10.0),
    ("trl", 0.1, "float32"): (curve(4.0, 3.0, 2.0, pace=20.0), 20.0),
    ("rlgkd", 0.2, "float32"): (curve(4.0, 4.5, 4.4), 10.0),
    ("trl", 0.2, "float32"): (curve(4.0, 1.5, 1.0, pace=30.0), 30.0),
}


def test_the_level_is_one_that_both_reach_and_each_side_has_its_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, RUNS)
    found = quality(QualitySettings(rates=[0.1, 0.2], out=str(tmp_path)), "trl")["distill"]
    assert (found["peer"], found["step_times_as_long"]) == ("DistillationTrainer", 2.0)
    float32 = {"precision": "float32"}
    assert found["best"] == {"rlgkd": {"rate": 0.1, **float32}, "trl": {"rate": 0.2, **float32}}
    for measure in ("reverse_kl", "reward"):
        same, best = found[measure]["same_recipe"], found[measure]["each_at_its_best"]
        assert [abs(pair["level"]) for pair in same["pairs"]] == [2.0]
        assert (same["pairs"][0]["seconds"], same["times_as_long"]) == ([10.0, 40.0], 4.0)
        assert (best["pairs"][0]["seconds"], best["times_as_long"]) == ([20.0, 60.0], 3.0)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    page = (tmp_path / "results.md").read_text()
    assert "| the same recipe | reverse KL, nats/token | 2.000 | 10.0 | 40.0 | 4.0 (4.0) |" in page
    assert "rlgkd learning rate 0.1, float32; trl learning rate 0.2, float32" in page
    assert json.loads((tmp_path / "results.json").read_text())["compared"]["distill"] == found
    assert (tmp_path / "distill.png").is_file()


def test_other_seeds_run_by_the_first_recipe_and_at_each_sides_best_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 rlgkd ends a little above the level, so its float32 is chosen; where it gets there, it is."""
    mixed = {
        ("rlgkd", 0.1, "bfloat16"): (curve(4.0, 2.0, 1.1, pace=4.0), 4.0),
        ("trl", 0.1, "bfloat16"): (curve(4.0, 3.9, 3.8), 10.0),
        ("rlgkd", 0.2, "bfloat16"): (curve(4.0, 4.5, 4.4), 10.0),
        ("trl", 0.2, "bfloat16"): (curve(4.0, 1.5, 1.2, pace=40.0), 40.0),
    }
    ran = pretend(monkeypatch, {**RUNS, **mixed})
    grid = {"rates": [0.1, 0.2], "out": str(tmp_path)}
    quality(QualitySettings(**grid), "trl")
    assert len(ran) == 4
    # A larger grid begins with what is there; the other seed needs two pairs, not four of each.
    found = quality(QualitySettings(**grid, precisions=["float32", "bfloat16"], seeds=2), "trl")["distill"]
    assert ran[4:8] == [(side, rate, "bfloat16", 0) for rate in (0.1, 0.2) for side in ("rlgkd", "trl")]
    assert found["best"]["rlgkd"] == {"rate": 0.1, "precision": "float32"}  # 1.1 is not the level that both reach, 1.0
    assert ran[8:] == [("rlgkd", 0.1, "float32", 1), ("trl", 0.1, "float32", 1), ("trl", 0.2, "float32", 1)]
    assert len(found["reverse_kl"]["each_at_its_best"]["pairs"]) == 2
    mixed["rlgkd", 0.1, "bfloat16"] = (curve(4.0, 2.0, 1.0, pace=4.0), 4.0)
    pretend(monkeypatch, {**RUNS, **mixed})
    again = quality(
        QualitySettings(**{**grid, "out": str(tmp_path / "new")}, precisions=["float32", "bfloat16"]), "trl"
    )
    assert again["distill"]["best"]["rlgkd"] == {"rate": 0.1, "precision": "bfloat16"}


def test_a_student_is_measured_without_what_its_trainer_put_around_it() -> None:
    model = nn.Linear(1, 1)
    around = model.__dict__["forward"] = lambda x: x.bfloat16()
    with own_forward(model):
        assert model(torch.ones(1, 1)).dtype == torch.float32
    assert model.forward is around
    with own_forward(plain := nn.Linear(1, 1)):
        pass
    assert "forward" not in plain.__dict__


def test_a_level_that_is_the_start_or_is_not_reached_gives_no_time() -> None:
    assert seconds_to(curve(4.0, 5.0), "reverse_kl", 4.0) == 0.0
    assert seconds_to(curve(4.0, 3.0), "reverse_kl", 2.0) is None
    assert (
        module._pairs([({"curve": curve(4.0, 5.0)}, {"curve": curve(4.0, 1.0)})], "reverse_kl")["times_as_long"] is None
    )
