"""One run of a comparison: how many models it holds while it trains."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from rlgkd.lm import open_by_name
from rlgkd.scripts.comparison import run_cell
from rlgkd.scripts.comparison.grid import grid
from rlgkd.scripts.comparison.results import untrained_models
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.train import make_env

SMALL = ("tokens=8", "prompts_per_update=1", "group_size=2", "eval_prompts=1", "env_settings={max_new_tokens: 4}")


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), PreTrainedModel) and hasattr(thing, "lm_head") for thing in gc.get_objects())


@pytest.mark.parametrize(
    "settings",
    [
        ["alpha=0.5"],
        ["alpha=0", "teacher=null"],  # the comparison's teacher, which no other one is next to
        ["alpha=0.5", "teacher=embedded:grounded-student", "teacher_decay=0.9"],
    ],
)
def test_a_run_trains_with_one_teacher_in_memory_and_is_measured_against_the_comparisons(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    fit = run_cell.fit

    def counted(*given: Any, **named: Any) -> None:
        held.append(alive())
        fit(*given, **named)

    monkeypatch.setattr(run_cell, "fit", counted)
    base = read("quickstart", SMALL)
    before = alive()
    run_cell.train_and_measure(read("quickstart", [*SMALL, *settings]), base, 1, tmp_path / "run")
    assert held == [before + 2]
    measured = json.loads((tmp_path / "run" / run_cell.MEASURED).read_text())
    student, teacher = open_by_name(str(tmp_path / "run")), open_by_name("embedded:grounded-teacher")
    task = make_env(base.env, base.env_settings, student=base.student, seed=0).get_attr("task")[0]
    again = run_cell.measure(student, teacher, task, base, 1)
    assert measured["measures"]["reverse_kl"] == pytest.approx(again["measures"]["reverse_kl"], abs=1e-4)


OTHER_TOKENS = (
    "agent=Distill",
    "env=rlgkd/Arithmetic-v0",
    "student=embedded:arithmetic-student",
    "teacher=embedded:grounded-teacher",
    "teacher_tokens=spans",
    "estimator=sampled",
    "eval_prompts=2",
    "alpha=1",
)


def test_a_teacher_with_other_tokens_is_aligned_for_cells_that_have_another_one(tmp_path: Path) -> None:
    base = read("quickstart", OTHER_TOKENS)
    found = []
    for cell in (base, read("quickstart", [*OTHER_TOKENS, "teacher_temperature=2"])):
        out = tmp_path / str(len(found))
        run_cell.measure_untrained(cell, base, 1, out, teacher=False)
        found.append(json.loads((out / run_cell.MEASURED).read_text())["measures"]["reverse_kl"])
    assert found[0] == found[1] and len(found[0]) == 2


def test_a_teacher_with_other_tokens_writes_no_texts_that_a_comparison_would_show() -> None:
    cells = grid(read("quickstart", OTHER_TOKENS), {"learning_rate": [0.1, 0.2]}, [0], samples=1, baseline="")
    assert [model.name for model in untrained_models(cells)] == ["start"]
