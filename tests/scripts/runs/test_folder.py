"""A run's folder and what is read with it: each name of its kind, one process, names and texts that harm nothing."""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chat_models
import pytest
from rich.console import Console
from typer.testing import CliRunner
from waiting_job import wait_to_be_stopped

import rlgkd
from rlgkd.agents.persistence import SETTINGS_FILE, read_agent
from rlgkd.agents.reinforce import Reinforce
from rlgkd.agents.sources import TeacherTexts
from rlgkd.agents.state import TrainingState
from rlgkd.envs import TextTask
from rlgkd.envs.data import readers
from rlgkd.envs.rewards.constant import no_reward
from rlgkd.errors import CheckpointError, DataError, ModelError, RlgkdError, SettingError, shown
from rlgkd.lm.loading import load_config
from rlgkd.scripts import cli
from rlgkd.scripts._console import say
from rlgkd.scripts.config.paths import LONGEST_NAME, folder_name
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import folder
from rlgkd.scripts.runs.stopping import stoppable
from rlgkd.scripts.runs.workers import LOG, Job, run_jobs

STUDENT = "embedded:grounded-student"


@pytest.mark.parametrize("name", [folder.CONFIG, folder.ROLLOUTS, folder.LOCK, folder.SUMMARY, folder.REPORT])
@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a folder")])
def test_a_file_of_a_run_that_is_none_is_refused(
    name: str, make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}' does not work; it is {kind}; put"), folder.locked(tmp_path):
        pass


@pytest.mark.parametrize("name", [folder.MODEL, folder.CHECKPOINTS, folder.TENSORBOARD])
def test_a_folder_of_a_run_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"{name}' does not work; it is no folder"), folder.locked(tmp_path):
        pass


def test_checkpoints_may_lie_on_another_disk_and_a_model_may_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.CHECKPOINTS).symlink_to(tmp_path / "elsewhere")
    folder.check_names(tmp_path / "run")
    (tmp_path / "run" / folder.MODEL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="model' does not work; it is a link"):
        folder.check_names(tmp_path / "run")


@pytest.mark.parametrize("name", ["trackers", "trackers/id", "trackers/wandb.log"])
def test_what_trackers_write_to_is_the_runs_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    if "/" in name:
        (tmp_path / "trackers").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}' does not work; it is a link"):
        folder.check_names(tmp_path)
    (tmp_path / name).unlink()
    if "/" in name:
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name}' does not work; it is a named pipe"):
            folder.check_names(tmp_path)


def test_a_file_system_without_locks_is_not_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    with pytest.raises(CheckpointError, match=r"cannot lock files \(No locks available\)"), folder.locked(tmp_path):
        pass


def test_windows_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "fcntl", None)
    with pytest.raises(SettingError, match=r"needs Linux or macOS .*run it in WSL"):
        folder.check_new(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**43)


def endless_line(path: Path) -> None:
    path.write_bytes(b'{"prompt": "' + b"x" * readers.MAX_LINE)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (huge, "GiB of memory"),
        (endless_line, "mine.jsonl:1' .*more than 64 MiB"),
    ],
)
def test_data_that_no_reading_would_end_is_refused(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "mine.jsonl")
    with pytest.raises(DataError, match=words):
        readers.read_file(tmp_path / "mine.jsonl")


def test_what_is_unpacked_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as file:
        file.write('{"prompt": "x"}\n' * 1000)
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(DataError, match="rows are read as a whole"):
        readers.read_file(tmp_path / "mine.jsonl.gz")


def test_a_prompt_of_many_megabytes_is_refused_without_being_encoded() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"it has 50,000,000 characters; shorten it or raise max_prompt_tokens, now 32"):
        TextTask(
            prompts=["x" * 50_000_000], reward=no_reward, tokenizer="embedded:grounded-student", max_prompt_tokens=32
        )
    with pytest.raises(SettingError, match=r"system: 'xxx.*' does not work; it has 50,000,000 characters; shorten it"):
        TextTask(prompts=["x"], system="x" * 50_000_000, chat=True, reward=no_reward, tokenizer=chat_models.tokenizer())
    assert time.monotonic() - began < 20


def test_other_files_that_are_named_are_refused_by_their_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(SettingError, match="it is a named pipe"):
        read(tmp_path / "run.yaml")
    os.mkfifo(tmp_path / "texts")
    with pytest.raises(DataError, match="it is a named pipe"):
        TeacherTexts(tmp_path / "texts", {})
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"its model.safetensors is a named pipe"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / SETTINGS_FILE)
    with pytest.raises(CheckpointError, match="it is a named pipe"):
        read_agent(tmp_path, "Reinforce", Reinforce.Config, {})


@pytest.mark.parametrize(
    "saved",
    [
        [],
        3,
        None,
        {},
        {"agent": "Reinforce", "settings": 3, "state": {}},
        {"agent": "Reinforce", "settings": {}},
        *(
            {"agent": "Reinforce", "settings": {}, "state": state}
            for state in (
                [],
                {"timesteps": "x"},
                {"updates": -1},
                {"rewards": [1, "x"]},
                {"alpha": "x"},
                {"more": 1},
                {"alpha": 7.0},
                {"alpha": math.nan},
                {"rewards": [1, 2]},
                {"rewards": [1, math.nan, 0.0]},
            )
        ),
    ],
)
def test_a_foreign_agent_file_is_one_line(saved: object, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="give a folder that save\\(\\) wrote") as caught:
        read_agent(tmp_path, "Reinforce", Reinforce.Config, {})
    assert "\n" not in str(caught.value)
    assert TrainingState.from_json(TrainingState().to_json()) == TrainingState()


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", "a/b", "x" * 300, "ü" * 300, "[/red]", "a\x1b]0;b\x07", ""])
def test_a_name_is_one_short_part_of_a_path(name: str) -> None:
    safe = folder_name(name)
    assert safe and "/" not in safe and not safe.startswith(".") and safe.isprintable()
    assert len(safe.encode()) <= LONGEST_NAME and Path(safe).name == safe
    assert folder_name("x" * 300) != folder_name("x" * 301)


def test_a_text_is_printed_as_it_stands_and_no_control_character_is_sent() -> None:
    out = io.StringIO()
    say(Console(file=out, force_terminal=True, width=20), "[/red] [b]x[/b] a.py:x: \x1b[2J\x9b3J \u202e" + "y" * 30)
    assert out.getvalue() == "[/red] [b]x[/b] a.py:x: \\x1b[2J\\x9b3J \\u202e" + "y" * 30 + "\n"
    error = RlgkdError("reward", "\x1b[2J", "it raised ValueError: \x1b]0;title\x07")
    assert str(error).isprintable() and shown("a\tb\nü") == "a\tb\nü"


def test_help_keeps_what_stands_in_brackets() -> None:
    result = CliRunner().invoke(cli.app, ["benchmark", "--help"])
    assert "rlgkd[trl]" in result.output
    result = CliRunner().invoke(cli.app, ["train", "--help"])
    assert "[RECIPE] [FILE.yaml] [key=value ...]" in result.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_jobs_save_when_they_are_stopped(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    jobs = [
        Job(name=name, folder=tmp_path / name, function=wait_to_be_stopped, arguments=(tmp_path / name,))
        for name in ("a", "b")
    ]

    def interrupt() -> None:
        while not all((job.folder / "ready").exists() for job in jobs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    console = Console(stderr=True)
    with pytest.raises(SystemExit) as stop, stoppable("rlgkd compare ...", console):
        run_jobs(jobs, most=2, console=console, quiet=True)
    assert stop.value.code == code
    assert all((job.folder / "saved").exists() for job in jobs)
    assert capsys.readouterr().err.endswith("stopped; go on with: rlgkd compare ...\n")


def fail_to_write(folder: Path) -> None:
    raise CheckpointError("run", str(folder), "it was not written (No space left on device): free space")


def test_a_job_says_why_it_failed_where_the_disk_takes_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rlgkd compare` on a full disk named the exit code alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LOG).symlink_to("/dev/full")
    job = Job(name="a", folder=tmp_path / "a", function=fail_to_write, arguments=(tmp_path / "a",))
    failed = run_jobs([job], most=1, console=Console(stderr=True), quiet=True)
    assert failed["a"].startswith("CheckpointError: run: ") and "(No space left on device)" in failed["a"]
    with pytest.raises(CheckpointError, match="it was not written"):
        run_jobs([replace(job, folder=tmp_path / "a" / LOG / "b")], most=1, console=Console(stderr=True), quiet=True)
    capsys.readouterr()


def test_a_clone_without_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "rlgkd").mkdir()
    source = Path(rlgkd.__file__)
    (tmp_path / "rlgkd" / "__init__.py").write_text(source.read_text())
    (tmp_path / "rlgkd" / "envs").write_text("../envs")  # what git leaves of a link
    command = [sys.executable, "-c", "import rlgkd"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={})
    assert result.returncode == 1 and "core.symlinks=true" in result.stderr.splitlines()[-1]


def test_an_interrupt_that_no_signal_sent_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, stoppable("the command", Console(stderr=True)):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith("that no signal sent, such as a reward's; go on with: the command\n")
