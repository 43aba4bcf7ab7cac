"""Damaged runs of a comparison: what is not whole is measured again, and times that are lost stop none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlgkd.errors import CheckpointError
from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import grid
from rlgkd.scripts.comparison.results import timing, tokens_done
from rlgkd.scripts.comparison.run_cell import MEASURED, is_measured, write
from rlgkd.scripts.config.reading import read


def test_a_measurement_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    base = read("quickstart")
    whole = {"prompts": [], "measures": {}, "by_position": {}, "texts": []}
    write(whole, base, 1, tmp_path)
    assert is_measured(base, 1, tmp_path) and not is_measured(base, 2, tmp_path)
    for lost in whole:
        write({name: value for name, value in whole.items() if name != lost}, base, 1, tmp_path)
        assert not is_measured(base, 1, tmp_path)
    for measures in ({"truth": [1, "0.5"]}, {"truth": 3}, [1]):
        write({**whole, "measures": measures}, base, 1, tmp_path)
        assert not is_measured(base, 1, tmp_path)
    write({**whole, "measures": {"truth": [1, 0.5, None]}}, base, 1, tmp_path)
    assert is_measured(base, 1, tmp_path)
    for text in ("", "[]", "3", "{", json.dumps({"by": 3})):
        (tmp_path / MEASURED).write_text(text)
        assert not is_measured(base, 1, tmp_path)
    (tmp_path / MEASURED).unlink()
    os.mkfifo(tmp_path / MEASURED)
    assert not is_measured(base, 1, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00\xfe", b"a,b\n1,2\n", b"time/sampling,time/update\nx,1.0\n", b'"\n']
)
def test_times_that_are_garbled_are_unknown(content: bytes, tmp_path: Path) -> None:
    cells = grid(read("quickstart"), {"alpha": [0.5]}, [0], samples=1)
    run = tmp_path / cells.cells[0].run_folder(0)
    run.mkdir(parents=True)
    (run / "times.csv").write_bytes(content)
    assert tokens_done(run) == 0
    assert all(value is None for curve in timing(cells, tmp_path).values() for row in curve.values() for value in row)


def test_a_folder_in_the_place_of_the_results_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(CheckpointError, match=r"results\.json' does not work; it is a folder"):
        compare(grid(read("quickstart"), {"alpha": [0.5]}, [0], samples=1), tmp_path)
