"""The projects and notebooks in examples/ run as they are: each project is sound and trains, each cell of a notebook
works, and a project's page says what its folder holds.

Guards against examples that a change of the library leaves broken, which is the first thing that a newcomer meets.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import from_scratch
import nbformat
import pytest
from nbclient import NotebookClient

from rlgkd.scripts.config.reading import read
from rlgkd.scripts.env_check import check_environment
from rlgkd.scripts.runs import train

EXAMPLES = Path(from_scratch.__file__).parent
PROJECTS = sorted(path.parent for path in EXAMPLES.glob("*/run.yaml"))
SHORT = ["tokens=400", "eval_prompts=2", "prompts_per_update=2", "threads=1"]


def test_there_are_five_projects_and_a_page_lists_them() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert len(PROJECTS) == 5
    for project in PROJECTS:
        assert f"({project.name}/README.md)" in page
        assert {path.suffix for path in project.iterdir() if path.is_file()} >= {".yaml", ".py", ".md", ".png"}


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_a_project_is_sound_and_trains(project: Path, tmp_path: Path) -> None:
    settings = read(project / "run.yaml", SHORT)
    assert [outcome for outcome in check_environment(settings, 8) if outcome.mark == "FAIL"] == []
    report = train.start(settings, tmp_path / "run", quiet=True)
    assert report is not None and (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_the_first_job_makes_its_data_and_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/first-job.md runs it with SmolLM2; here is a small model, without the chat that this one does not know."""
    shutil.copytree(EXAMPLES / "first_job", tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    runpy.run_path("make_data.py", run_name="__main__")
    rows = {name: Path(f"{name}.jsonl").read_text().splitlines() for name in ("train", "test", "validation")}
    assert [len(lines) for lines in rows.values()] == [400, 64, 32]
    for line in rows["train"]:
        row = json.loads(line)
        assert row["request"].lower() not in row["mail"].lower() and row["order"] in row["mail"]
    small = ["student=embedded:grounded-student", "teacher=embedded:grounded-teacher", "env_settings.chat=false"]
    limits = ["env_settings.system=null", "env_settings.max_prompt_tokens=160", "env_settings.max_new_tokens=48"]
    settings = read("job.yaml", [*small, *limits, *SHORT])
    assert [outcome for outcome in check_environment(settings, 8) if outcome.mark == "FAIL"] == []
    assert train.start(settings, tmp_path / "run", quiet=True) is not None


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_works(notebook: Path, tmp_path: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        cell.source = re.sub(r"total_timesteps=[\d_]+", "total_timesteps=300", cell.source)
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
