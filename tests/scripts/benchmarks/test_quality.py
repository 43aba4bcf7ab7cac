"""Time to quality: curves of a real run, levels that both sides reach, cells that are never run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgkd.errors import SettingError
from rlgkd.scripts.benchmarks import quality as module
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


def test_the_level_is_one_that_both_reach_and_each_side_has_its_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {
        ("rlgkd", 0.1): (curve(4.0, 2.0, 1.0), 10.0),
        ("trl", 0.1): (curve(4.0, 3.0, 2.0, pace=20.0), 20.0),
        ("rlgkd", 0.2): (curve(4.0, 4.5, 4.4), 10.0),
        ("trl", 0.2): (curve(4.0, 1.5, 1.0, pace=30.0), 30.0),
    }

    def run(job: dict[str, object], runner: str, folder: Path) -> dict[str, object]:
        points, pace = runs["trl" if "peer" in runner else "rlgkd", float(str(job["learning_rate"]))]
        return {"curve": points, "seconds": [pace] * 2, "peak_mb": 1.0}

    monkeypatch.setattr(module, "run_job", run)
    monkeypatch.setattr(module, "_shared", lambda settings, folder: {})
    found = quality(QualitySettings(rates=[0.1, 0.2], out=str(tmp_path)), "trl")["distill"]
    assert (found["peer"], found["step_times_as_long"]) == ("DistillationTrainer", 2.0)
    for measure in ("reverse_kl", "reward"):
        same, best = found[measure]["same_recipe"], found[measure]["each_at_its_best"]
        assert [abs(pair["level"]) for pair in same["pairs"]] == [2.0]
        assert (same["pairs"][0]["seconds"], same["times_as_long"]) == ([10.0, 40.0], 4.0)
        assert best["rates"] == {"rlgkd": 0.1, "trl": 0.2}
        assert (best["pairs"][0]["seconds"], best["times_as_long"]) == ([20.0, 60.0], 3.0)
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_a_level_that_is_the_start_or_is_not_reached_gives_no_time() -> None:
    assert seconds_to(curve(4.0, 5.0), "reverse_kl", 4.0) == 0.0
    assert seconds_to(curve(4.0, 3.0), "reverse_kl", 2.0) is None
    assert (
        module._pairs([({"curve": curve(4.0, 5.0)}, {"curve": curve(4.0, 1.0)})], "reverse_kl")["times_as_long"] is None
    )
