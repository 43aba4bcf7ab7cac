"""Every recipe is a paper's, is listed, and trains."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rlgkd.scripts.settings import RECIPES, read, recipe_names
from rlgkd.scripts.train import start

EMBEDDED = [name for name in recipe_names() if "smollm2" not in name]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_its_paper_and_is_short(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    settings = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("# ") and any(year in "".join(lines[:2]) for year in map(str, range(1992, 2027)))
    assert len(settings) <= 18
    assert read(name).name == name


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_recipe_trains_on_the_embedded_task(name: str, tmp_path: Path) -> None:
    small = ["tokens=300", "prompts_per_update=2", "eval_prompts=2", "eval_split=validation"]
    group = read(name).group_size
    start(read(name, [*small, f"group_size={min(group, 2)}"]), tmp_path / "run", quiet=True)
    with (tmp_path / "run" / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert all(float(row["train/loss"]) == float(row["train/loss"]) for row in rows)  # no NaN
    if read(name).agent != "Distill" and read(name).epochs == 1:
        assert any(float(row["train/grad_norm"]) > 0 for row in rows)
