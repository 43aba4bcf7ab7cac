"""The trackers that are known by name, with their real libraries on local folders: a resumed run is the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROWS = [
    {"step": 0, "prompt": "a", "completion": "b", "reward": 0.5},
    {"step": 0, "prompt": "c", "completion": "d", "reward": None},
]


def track(name: str, folder: Path, environment: Mapping[str, str], tokens: int, *, resumed: bool, whole: bool) -> None:
    """One process of a run: a number and two texts."""
    run = {
        "id": "0123abcd",
        "name": "mine",
        "project": "tests",
        "folder": str(folder),
        "settings": {"alpha": 0.25, "env_settings": {"max_new_tokens": 8}, "layers": [0, 1]},
        "resumed": resumed,
    }
    calls = [
        {"call": "start", "content": run},
        {"call": "numbers", "content": {"train/divergence": 0.5}, "tokens": tokens},
        {"call": "texts", "content": ROWS, "tokens": tokens},
        {"call": "files", "content": [str(folder / "config.yaml")]},
        {"call": "end", "content": whole},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rlgkd.scripts.tracking.process", name],
        input="".join(f"{json.dumps(call)}\n" for call in calls),
        capture_output=True,
        text=True,
        env=dict(environment),
        cwd=folder,
        timeout=120,
    )
    answers: dict[str, object] = {}
    for line in done.stdout.splitlines():
        answers |= json.loads(line)
    assert (answers.get("ended"), answers.get("failures")) == (5, 0), done.stderr
    assert answers["started"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("alpha: 0.25\n")
    return tmp_path


@pytest.fixture
def environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    local = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HOME": str(folder / "hf"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    for name, value in local.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


def both(name: str, folder: Path, environment: Mapping[str, str]) -> None:
    """A run that was stopped, and goes on."""
    track(name, folder, environment, 100, resumed=False, whole=False)
    track(name, folder, environment, 200, resumed=True, whole=True)


def test_wandb_offline_keeps_the_runs_id(folder: Path, environment: Mapping[str, str]) -> None:
    pytest.importorskip("wandb")
    both("wandb", folder, environment)
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert parts and {part.name.rpartition("-")[2] for part in parts} == {"0123abcd"}
    assert all((part / "run-0123abcd.wandb").stat().st_size for part in parts)
    (table, *_) = parts[0].glob("files/media/table/texts_*.json")
    assert json.loads(table.read_text())["data"][0] == [0, "a", "b", 0.5]
    assert (parts[0] / "files" / "config.yaml").read_text() == "alpha: 0.25\n"


def test_trackio_goes_on_in_the_same_run(folder: Path, environment: Mapping[str, str]) -> None:
    pytest.importorskip("trackio")
    both("trackio", folder, environment)
    code = (
        "import json, trackio\n"
        "(run,) = trackio.Api().runs('tests')\n"
        "print(json.dumps([run.name, trackio.SQLiteStorage.get_logs('tests', run.name)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(environment), check=True
    )
    name, logs = json.loads(done.stdout)
    assert name == "mine-0123abcd"
    numbers = [(log["step"], log["train/divergence"]) for log in logs if "train/divergence" in log]
    assert numbers == [(100, 0.5), (200, 0.5)]
    assert sum("texts" in log for log in logs) == 2


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow 3.17 with SQLAlchemy 2.1
def test_mlflow_goes_on_in_the_same_run(folder: Path, environment: Mapping[str, str]) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    both("mlflow", folder, environment)
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert (run.info.status, run.data.params["alpha"]) == ("FINISHED", "0.25")
    history = client.get_metric_history(run.info.run_id, "train/divergence")
    assert [(metric.step, metric.value) for metric in history] == [(100, 0.5), (200, 0.5)]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "texts.json")).read_text())
    assert [row[table["columns"].index("tokens")] for row in table["data"]] == [100, 100, 200, 200]
