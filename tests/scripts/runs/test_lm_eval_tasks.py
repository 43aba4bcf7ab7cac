"""lm-eval as a library, on a task of a few rows: a run's model stands next to its start and its teacher."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rlgkd.errors import DependencyError, SettingError
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.lm_eval_tasks import compared, models_of, table

STUDENT, TEACHER = "embedded:arithmetic-student", "embedded:arithmetic-teacher"


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A choice of two answers."""
    rows = [{"q": f"What is {n} plus {n}?", "choices": [str(2 * n), "a dog"], "label": 0} for n in range(1, 7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": "tiny_sums",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "tiny.yaml")


@pytest.mark.filterwarnings("ignore")  # those of lm-eval and datasets
def test_a_run_stands_next_to_its_start_and_its_teacher(task: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"env": "rlgkd/Arithmetic-v0", "teacher": TEACHER}))
    from rlgkd.lm import load, load_tokenizer
    from rlgkd.lm.saving import save

    save(load(TEACHER), load_tokenizer(TEACHER), run / "model")
    found = compared(str(run), [task], limit=4)
    assert [*found] == ["model", "start", "teacher"] and found["model"] == found["teacher"]
    value, error = found["model"]["tiny_sums"]["acc"]
    assert 0 <= value <= 1 and (math.isnan(error) or error >= 0)
    console = Console(width=200, record=True)
    console.print(table(found))
    printed = console.export_text()
    assert f"{value:.4f}" in printed and "tiny_sums" in printed and "teacher" in printed
    with pytest.raises(SettingError, match="lm-eval does not run it"):
        compared(STUDENT, ["no_such_task_at_all"], limit=4)


@pytest.mark.parametrize("teacher", ["http://127.0.0.1:9", "taught.safetensors"])
def test_a_teacher_that_is_no_model_and_a_start_that_was_cut_are_left_out(teacher: str) -> None:
    served = ["agent=Distill", "alpha=1", "student_fraction=0", "teacher_top_k=8", f"teacher={teacher}"]
    assert models_of("run", read("quickstart", served)) == {"model": "run", "start": "embedded:grounded-student"}
    assert models_of("run", read("quickstart", ["student_layers=[0]"])) == {
        "model": "run",
        "teacher": "embedded:grounded-teacher",
    }


def test_without_lm_eval_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DependencyError, match=r"pip install 'rlgkd\[lm-eval\]'"):
        compared(STUDENT, ["arc_easy"])
