"""Benchmarks print one line of JSON, and stepping stays far below what a policy costs."""

from __future__ import annotations

import json

import pytest

from rlgkd.errors import SettingError
from rlgkd.scripts import benchmark
from rlgkd.scripts.benchmark_stepping import stepping
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
        benchmark.show("jumping")
    with pytest.raises(SettingError, match="rows: 0"):
        stepping(rows=0)
