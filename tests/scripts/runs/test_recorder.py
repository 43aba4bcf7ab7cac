"""What a run writes while it trains: every value under its own column, in strict formats, also after a resume.

The behaviours guarded: a name with a comma is one column; a column that comes later is kept and empties none; a table
is cut to a number of updates, whole rows only; a power cut loses nothing
that a checkpoint counts on; tables of older versions are read and go on.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.watch import Seen
from rlgkd.scripts.report.metrics import measure_rows
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.report.run_files import read_run
from rlgkd.scripts.runs.recorder import Recorder, strict_json
from rlgkd.scripts.runs.stopping import StopRequest
from rlgkd.scripts.runs.tables import ProgressCsv, cut_rows

NAME = 'rollout/reward/right, "exact"'


def write(path: Path, *rows: dict[str, float]) -> None:
    """Each row by a writer of its own, as a run that is resumed at every update would."""
    for row in rows:
        ProgressCsv(path).write(row, dict.fromkeys(row, ()))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_a_name_with_a_comma_is_one_column_also_after_a_resume(tmp_path: Path) -> None:
    rows = [{"train/loss": 2.0, NAME: 0.5}, {"train/loss": 3.0, NAME: 0.75}]
    write(tmp_path / "progress.csv", *rows)
    assert read(tmp_path / "progress.csv") == [{key: str(row[key]) for key in sorted(row)} for row in rows]
    assert read_run(tmp_path).progress[NAME].tolist() == [0.5, 0.75]


def test_a_column_that_comes_later_is_kept_and_empty_before(tmp_path: Path) -> None:
    early, late = {"train/loss": 2.0, "rollout/reward/early": 1.0}, {"train/loss": 3.0, "rollout/reward/late": 4.0}
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    writer = ProgressCsv(whole)
    for row in (early, early, late, early):
        writer.write(row, dict.fromkeys(row, ()))
    assert [row["rollout/reward/late"] for row in read(whole)] == ["", "", "4.0", ""]
    assert [row["train/loss"] for row in read(whole)] == ["2.0", "2.0", "3.0", "2.0"]
    write(resumed, early, early, late)  # killed after the header was written again, resumed from the update before
    cut_rows(resumed, 2)
    write(resumed, late, early)
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_table_is_cut_to_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    write(path, {"train/loss": 1.0}, {"train/loss": 2.0})
    two = path.read_bytes()
    with path.open("a") as file:
        file.write("3.")
    cut_rows(path, 3)
    assert path.read_bytes() == two
    cut_rows(path, 0)
    assert path.read_bytes() == b""


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: done.append(f"{path.name} {path.stat().st_size}"))
    monkeypatch.setattr(checkpoint, "save", lambda folder, **content: done.append(f"{folder.name} {content['state']}"))
    state = SimpleNamespace(to_json=lambda: {"updates": 3})
    for name in ("progress.csv", "times.csv"):
        (tmp_path / name).write_text("12345")
    with checkpoint.GrowingFile(tmp_path / "rollouts.jsonl") as rollouts:
        settings = SimpleNamespace(tokens=100, flat=dict, checkpoint_format="whole")
        recorder = Recorder(settings, tmp_path, rollouts, StopRequest(), quiet=True, console=Console())  # type: ignore[arg-type]
        parts = {"policy": SimpleNamespace(optimizer=None), "student": SimpleNamespace(module=torch.nn.Identity())}
        watch = SimpleNamespace(seen=Seen())
        recorder.model = SimpleNamespace(state=state, watch=watch, modules=None, **parts)  # type: ignore[assignment]
        rollouts.write("1234567")
        recorder._checkpoint(recorder._position())
    assert done[:3] == ["progress.csv 5", "times.csv 5", "rollouts.jsonl 7"] and tmp_path.name in done[3]
    assert done[4].startswith("step-3 ") and "{'rollouts.jsonl': 7}" in done[4] and len(done) == 5


@pytest.mark.parametrize(("minutes", "written"), [(10.0, [5, 8]), (0, [8])])
def test_a_checkpoint_comes_by_updates_or_by_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, written: list[int]
) -> None:
    """Updates of two minutes each: after ten minutes, or at the eighth update, which begins the minutes again."""
    now, saved = [0.0], list[int]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    settings = SimpleNamespace(tokens=100, checkpoint_every=8, checkpoint_minutes=minutes)
    recorder = Recorder(settings, tmp_path, None, StopRequest(), quiet=True, console=Console())  # type: ignore[arg-type]
    monkeypatch.setattr(recorder, "_show", lambda updates: None)
    monkeypatch.setattr(recorder, "_position", lambda: {})
    monkeypatch.setattr(recorder, "_checkpoint", lambda position: recorder_saved())

    def recorder_saved() -> None:
        saved.append(recorder.model.state.updates)
        recorder._saved_update, recorder._saved_at = saved[-1], now[0]

    for updates in range(1, 11):
        now[0] += 120
        state, student = SimpleNamespace(updates=updates), SimpleNamespace(module=torch.nn.Identity())
        recorder.model = SimpleNamespace(state=state, student=student)  # type: ignore[assignment]
        recorder._on_rollout_start()
    assert saved == written


def test_scores_that_are_not_finite_are_null_in_json_and_unknown_in_a_report(tmp_path: Path) -> None:
    score = {"mean": math.nan, "low": -math.inf, "high": math.inf}
    text = strict_json(
        {"before": {"reward": score, "truth": {"mean": 0.5}}, "examples": ({"reward": np.float64("nan")},)}
    )
    assert json.loads(text, parse_constant=pytest.fail) == {
        "before": {"reward": dict.fromkeys(score), "truth": {"mean": 0.5}},
        "examples": [{"reward": None}],
    }
    (tmp_path / "summary.json").write_text(text)
    assert len(measure_rows(read_run(tmp_path).summary)) == 1


def test_a_table_of_an_older_version_is_read_and_goes_on(tmp_path: Path) -> None:
    old = "rollout/reward/brief,rollout/reward/right, exact,train/loss\n1.0,0.5,2.0\n1.0,,,3.0\n"  # resumed once
    names, rows = read_table(old)
    assert names == ["rollout/reward/brief", "rollout/reward/right, exact", "train/loss"]
    assert rows == [["1.0", "0.5", "2.0"], ["1.0", "", "3.0"]]
    path = tmp_path / "progress.csv"
    path.write_text(old)
    cut_rows(path, 2)
    write(path, dict(zip(names, (1.0, 0.75, 4.0), strict=True)))
    assert [list(row.values()) for row in read(path)] == [*rows, ["1.0", "0.75", "4.0"]]
