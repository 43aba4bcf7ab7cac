"""Benchmarks print one line of JSON; stepping stays far below what a policy costs; parts of a step add up to it."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import tiny

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import save
from rlgkd.scripts.benchmarks import command, parts, step, workloads
from rlgkd.scripts.benchmarks.env_stepping import stepping
from rlgkd.scripts.benchmarks.job import BenchmarkJob
from rlgkd.scripts.cli import main


def test_a_step_costs_a_row_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["benchmark", "stepping"])
    assert done.value.code == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured.keys() == {"workload", "rows", "tokens", "gymnasium_us", "sb3_us"}
    assert (measured["workload"], measured["rows"], measured["tokens"]) == ("stepping", 64, 512)
    assert 0 < measured["gymnasium_us"] < 60 and 0 < measured["sb3_us"] < 60


def test_unknown_workloads_and_sizes_are_refused() -> None:
    with pytest.raises(SettingError, match="workload: 'jumping' does not work; choose one of stepping"):
        command.show("jumping")
    with pytest.raises(SettingError, match="rows: 0"):
        stepping(rows=0)
    with pytest.raises(SettingError, match="setting: 'tokens' does not work; embedded-rl does not take it"):
        command.show("embedded-rl", ["tokens=5"])
    with pytest.raises(SettingError, match="setting: 'group_size' does not work; embedded-rl does not take it"):
        command.show("embedded-rl", ["group_size=8"])
    with pytest.raises(SettingError, match="embedded-generate does not take it; a training step takes what leaves"):
        command.show("embedded-generate", ["token_budget=5"])
    with pytest.raises(SettingError, match="token_budget: -5"):
        command.show("embedded-rl", ["token_budget=-5"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a student and a teacher."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("teacher", 1), ("student", 2)):
        save(tiny.model(vocabulary=64, seed=seed), tiny.word_tokenizer(*(f"w{n}" for n in range(1, 64))), folder / name)
    return folder


def job(models: Path, **changes: Any) -> BenchmarkJob:
    settings: dict[str, Any] = {
        "student": str(models / "student"),
        "teacher": str(models / "teacher"),
        "kind": "distill",
        "batch": 4,
        "prompts": ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w10"],
        "group": 1,
        "new_tokens": 5,
        "steps": 2,
        "warmup": 1,
        "threads": 1,
        "seed": 0,
    }
    return BenchmarkJob(**(settings | changes))


@pytest.mark.parametrize(("kind", "group"), [("distill", 1), ("rl", 2), ("both", 2)])
def test_the_parts_of_a_step_are_the_step(kind: str, group: int, models: Path) -> None:
    measured = step.measure(job(models, kind=kind, group=group))
    parts = measured["parts"]
    assert len(measured["seconds"]) == len(measured["loss"]) == 2
    assert ("teacher" in parts) == (kind != "rl")
    assert sum(parts.values()) == pytest.approx(statistics.mean(measured["seconds"]))
    assert 0 < measured["bound"] < min(measured["seconds"])
    assert all(0 < tokens <= 20 for tokens in measured["tokens"])


def test_a_divergence_reaches_the_agent_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(workloads, "step", lambda name, **asked: given.update(asked) or {})
    command.show("embedded-distill", ["divergence=jsd(0.9)"])
    assert given["settings"] == {"divergence": "jsd(0.9)"}


def test_a_setting_reaches_the_agent(models: Path) -> None:
    agent = step.make_agent(job(models, settings={"token_budget": 77}))
    assert agent.config.optimizer.token_budget == 77


def test_generation_is_timed_alone(models: Path) -> None:
    measured = step.measure(job(models, kind="generate"))
    assert len(measured["seconds"]) == 2 and all(0 < tokens <= 20 for tokens in measured["tokens"])
    with pytest.raises(SettingError, match="kind: 'dpo' does not work; choose one of distill, rl, both, sft, generate"):
        step.measure(job(models, kind="dpo"))


def test_adapters_are_fine_tuned_on_references_and_the_memory_of_each_step_is_kept(models: Path) -> None:
    pairs = {"prompts": ["w1 w2 w3", "w4 w5"], "references": ["w6 w7", "w8"]}
    measured = step.measure(job(models, kind="sft", batch=2, bounded=False, **pairs))
    assert len(measured["seconds"]) == len(measured["peaks_mb"]) == 2 and measured["tokens"] == [5, 5]
    summary = workloads.summarise([{**measured, "peak_mb": 3.0, "peaks_mb": [2.0, 3.0]}])
    assert (summary["peak_mb"], summary["grown_since_warmup"]) == (3, 0.5) and "of_the_bound" not in summary
    losses = measured["loss"]
    assert losses[1] < losses[0]


def test_lengths_are_spread_and_one_is_the_limit() -> None:
    lengths = parts.spread_lengths(200, 64, seed=0)
    assert max(lengths) == lengths[0] == 64 and min(lengths) >= 1
    assert 16 < statistics.median(lengths) < 28


def test_padded_rows_carry_the_loss_of_ragged_ones(models: Path) -> None:
    long = parts._trajectory([1, 2], [3, 4, 5, 6], 2)
    assert long.action_mask_T.tolist() == [False, False, True, True, False, False]
    measured = parts.measure(job(models, kind="ragged"))
    assert len(measured["ragged"]) == len(measured["padded"]) == 2


def test_the_loss_takes_memory_of_a_chunk_and_not_of_the_batch(models: Path) -> None:
    measured = parts.measure(job(models, kind="loss", batch=2**10, new_tokens=2**7))
    assert measured["actions"] == 2**17 and measured["logits_mb"] == 32
    assert measured["mb"] >= 0


def test_a_run_that_fails_is_reported_with_its_last_line(models: Path, tmp_path: Path) -> None:
    given = dataclasses.asdict(job(models, student="nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        workloads.run_job(given, workloads.STEP_RUNNER, tmp_path)


def test_medians_ratios_and_powers() -> None:
    ours = [{"seconds": [1.0, 2.0, 3.0], "tokens": [10, 10, 10], "bound": 0.5, "peak_mb": 100.0, "parts": {"a": 1.0}}]
    theirs = [{"seconds": [5.0, 6.0, 9.0], "tokens": [10], "peak_mb": 200.0, "versions": {}}]
    summary = workloads.summarise(ours)
    assert (summary["seconds"], summary["tokens_per_second"], summary["of_the_bound"]) == (2.0, 5, 0.25)
    peer = workloads.compare_with_peer(theirs, ours)
    assert (peer["times_as_long"], peer["memory_of_it"]) == (3.0, 0.5)
    assert workloads.growth_power({8: 1.0, 16: 7.0, 32: 16.0}) == pytest.approx(2.0)
