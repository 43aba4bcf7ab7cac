"""Runs, evaluations and comparisons with a teacher on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from teacher_server import TeacherServer, serving

from rlgkd.agents import Reinforce
from rlgkd.errors import ModelError, SettingError, TeacherError
from rlgkd.failures import FailureCount
from rlgkd.lm import load, load_tokenizer
from rlgkd.scripts.comparison.grid import grid
from rlgkd.scripts.comparison.results import untrained_models
from rlgkd.scripts.comparison.run_cell import measure_untrained, train_and_measure
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.runs import evaluate, train
from rlgkd.scripts.runs.teach import teach

TEACHER = "embedded:grounded-teacher"
SMALL = ("tokens=80", "prompts_per_update=2", "eval_prompts=1", "warmup=0", "threads=1", "checkpoint_every=1")


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with serving(load(TEACHER), load_tokenizer(TEACHER)) as running:
        yield running


def settings_of(server: TeacherServer, *more: str):
    return read("quickstart", [*SMALL, f"teacher={server.url}", "teacher_top_k=8", "teacher_retries=0", *more])


def column(out: Path, name: str) -> list[str]:
    names, rows = read_table((out / "progress.csv").read_text())
    return [row[names.index(name)] for row in rows]


def test_a_run_whose_server_fails_goes_on_with_resume_as_if_it_had_not(server, tmp_path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.start(settings_of(server), whole, quiet=True)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["before"]["reverse_kl"]["mean"] > 0 and summary["teacher_scores"] == {}
    assert set(column(whole, "train/teacher_failed")) == {"0.0"} and len(column(whole, "train/divergence")) > 1

    server.faults = chain(repeat(None, 10), repeat("status"))  # from some request of the second update on
    with pytest.raises(TeacherError, match=server.url), pytest.MonkeyPatch.context() as patch:
        patch.setattr(FailureCount, "too_many", lambda count, most: count.failed > most)
        train.start(settings_of(server, "max_failed_teacher=0"), broken, quiet=True)
    server.do_wrong()
    assert len(column(broken, "train/divergence")) >= 1
    train.resume(broken, quiet=True)
    for name in ("train/divergence", "train/loss", "rollout/ep_rew_mean"):
        assert [float(v) for v in column(broken, name)] == pytest.approx([float(v) for v in column(whole, name)])
    assert (broken / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()


def test_a_server_that_has_another_model_at_a_resume_is_refused(server, tmp_path) -> None:
    out, right = tmp_path / "run", server.module
    train.start(settings_of(server), out, quiet=True)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    server.module = load("embedded:grounded-student")
    with pytest.raises(ModelError, match=r"another model than it was: .* moved by"):
        train.resume(out, ["tokens=120"], quiet=True)
    assert all(path.read_bytes() == content for path, content in before.items())
    server.module = right
    train.resume(out, ["tokens=120"], quiet=True)
    assert len(column(out, "train/divergence")) > len(before[out / "progress.csv"].splitlines()) - 1


def test_evaluate_measures_the_divergence_to_a_server(server, capsys) -> None:
    evaluate.show(
        "embedded:grounded-student",
        env="",
        split="test",
        prompts=2,
        teacher=server.url,
        temperature=None,
        greedy=False,
        seed=0,
        top_k=None,
        top_p=None,
        min_p=None,
    )
    assert "reverse_kl_data" in capsys.readouterr().out
    assert server.asked[-1]["prompt_logprobs"] == 64


def test_a_comparison_trains_with_a_server_and_does_not_measure_it(server, tmp_path) -> None:
    base = settings_of(server, "tokens=30", "eval_prompts=2")
    cells = grid(base, {"alpha": [0.0, 0.5]}, [0], samples=1, baseline="")
    (start,) = untrained_models(cells)
    assert not start.is_teacher
    measure_untrained(start.settings, base, 1, tmp_path / "start", teacher=False)
    train_and_measure(cells.cells[1].seeded(0), base, 1, tmp_path / "half")
    for name in ("start", "half"):
        measured = json.loads((tmp_path / name / "measured.json").read_text())
        assert all(value > 0 for value in measured["measures"]["reverse_kl"])
        assert measured["by"]["teacher_top_k"] == 8


def test_a_secret_in_the_address_is_in_no_file(server, tmp_path) -> None:
    url = server.url.replace("//", "//me:a-secret@")
    train.start(settings_of(server, f"teacher={url}", "tokens=20"), tmp_path / "run", quiet=True)
    teach("quickstart", teacher=url, top_k=2, out=tmp_path / "taught.safetensors", prompts=1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"a-secret" in path.read_bytes()]
    with pytest.raises(SettingError, match="a secret was masked"):
        Reinforce.load(tmp_path / "run/model", "rlgkd/GroundedSummary-v0", device="cpu", learning_rate=1e-3)


def test_cells_that_know_less_of_the_teacher_are_measured_as_the_comparison_says(server, tmp_path) -> None:
    base = settings_of(server, "tokens=30", "eval_prompts=2")
    (cell,) = grid(base, {"estimator": ["sampled"], "teacher_top_k": [None]}, [0], samples=1, baseline="").cells
    train_and_measure(cell.seeded(0), base, 1, tmp_path / "sampled")
    measured = json.loads((tmp_path / "sampled" / "measured.json").read_text())
    assert all(value > 0 for value in measured["measures"]["reverse_kl"])


def test_a_server_that_is_not_there_leaves_no_folder(server, tmp_path) -> None:
    settings = settings_of(server, "teacher=http://127.0.0.1:9")
    with pytest.raises(ModelError, match="is it running there"):
        train.start(settings, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
