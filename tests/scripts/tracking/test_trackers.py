"""Trackers receive a run, and none of them stops or changes it, whatever it does."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

from rlgkd.errors import CheckpointError, DependencyError, SettingError
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import train
from rlgkd.scripts.tracking import trackers
from rlgkd.scripts.tracking.libraries import check_trackers

FAULTY = Path(__file__).with_name("faulty_trackers.py")
TINY = (
    "agent=Reinforce",
    "alpha=0.5",
    "tokens=1600",
    "prompts_per_update=1",
    "group_size=2",
    "eval_prompts=2",
    "checkpoint_every=20",
    "threads=1",
    "tracker_texts_every=1",
)
"""Some sixty updates of two texts."""


def run(out: Path, *names: str, **settings: object) -> Path:
    given = [f"{name}={value}" for name, value in settings.items()]
    paths = ",".join(f"{FAULTY}:{name}" for name in names)
    train.start(read("quickstart", [*TINY, f"trackers={paths}", *given]), out, quiet=True)
    return out


def calls_of(out: Path, name: str) -> list[tuple[object, ...]]:
    return [ast.literal_eval(line) for line in (out / f"{name}.calls").read_text().splitlines()]


def content(out: Path) -> dict[str, str]:
    """A hash of everything in the run's folder that training decides."""
    files = [
        out / "progress.csv",
        out / "rollouts.jsonl",
        *(out / "model").glob("*.safetensors"),
        *out.glob("checkpoints/*/*.safetensors"),
    ]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("untracked") / "run")


def test_two_hundred_faults_stop_nothing_and_change_no_bit(
    untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exceptions in every call, processes that end or are killed, a hang, and one that meddles with all it reaches."""
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 10.0)  # six processes start, on two cores that may be busy
    names = ("Raises", "DoesNotStart", "Exits", "Kills", "Hangs", "Meddles")
    out = run(tmp_path / "run", *names, tracker_texts=1)
    assert content(out) == content(untracked)
    faults = sum(len(calls_of(out, name)) for name in ("Raises", "Meddles")) + len(names) - 2
    assert faults > 200, faults
    said = capsys.readouterr().err
    assert "DoesNotStart: a call failed and training goes on: start: PermissionError: no key" in said
    assert "Raises: a call failed and training goes on: numbers: KeyError: 'fault 1\\nof many'" in said
    assert f"Raises: {len(calls_of(out, 'Raises')) - 1} of {len(calls_of(out, 'Raises'))} calls failed" in said
    assert "Exits: its process ended early (exit code 3)" in said
    assert "Kills: its process ended early (exit code -9)" in said
    assert "Hangs: it did not end within 10 s and is stopped" in said
    assert "calls did not reach it" in said and "Traceback" not in said


def test_a_tracker_gets_numbers_texts_and_files_in_order(untracked: Path, tmp_path: Path) -> None:
    out = run(tmp_path / "run", "Records", tracker_texts=1)
    calls = calls_of(out, "Records")
    records = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    firsts = [next(record for record in records if record["step"] == step) for step in range(records[-1]["step"] + 1)]
    assert calls[0][0] == "start" and calls[0][2] is False
    assert [call[2] for call in calls if call[0] == "texts"] == [record["completion"] for record in firsts]
    tokens = [call[1] for call in calls if call[0] == "numbers"]
    assert tokens[:2] == [0, 0] and tokens == sorted(tokens) and len(tokens) == len(firsts) + 3
    assert calls[-2:] == [("files", "config.yaml", "progress.csv", "summary.json", "report.html"), ("end", True)]
    assert content(out) == content(untracked)


def test_a_resumed_run_keeps_its_id_and_one_that_was_stopped_is_not_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as left:
        run(out, "Interrupts", tokens=100_000)
    assert left.value.code == 130
    states = [json.loads(file.read_text()) for file in (out / "checkpoints").glob("step-*/state.json")]
    tokens = max(state["training"]["timesteps"] for state in states)  # of two, if the signal came late
    train.resume(out, [f"tokens={tokens + 50}"], quiet=True)
    calls = calls_of(out, "Interrupts")
    (_, id_, resumed), (_, again, resumed_again) = [call for call in calls if call[0] == "start"]
    assert (resumed, again, resumed_again) == (False, id_, True)
    assert [call[1] for call in calls if call[0] == "end"] == [False, True]


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="trackers: 'wandbb' does not work; did you mean 'wandb'"):
        train.start(read("quickstart", [*TINY, "trackers=wandbb"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_librarys_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wandb writes into a folder `wandb`, which Python takes for a package without a file."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "wandb").mkdir()
    with pytest.raises(DependencyError, match=r"pip install 'rlgkd\[wandb\]'"):
        check_trackers(["wandb"])
    (tmp_path / "mlflow.py").touch()
    check_trackers(["mlflow", "mine.py:Tracker"])


@pytest.mark.parametrize("content", [b"", b"' OR 1=1 --", b"\xff", b"0123456789abcdef", b"../../../x\n", b"a\nb"])
def test_an_id_that_no_run_has_written_reaches_no_library(content: bytes, tmp_path: Path) -> None:
    (tmp_path / trackers.FOLDER).mkdir()
    (tmp_path / trackers.FOLDER / "id").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"trackers: .*id' does not work; it holds .*, which is no id; delete it"):
        trackers.Trackers([f"{FAULTY}:Records"], tmp_path, name="x", project="x", settings={})
