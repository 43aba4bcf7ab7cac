"""The command line: errors are one line, options reach the commands, and its import stays light."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import rlgkd
from rlgkd.errors import RewardError, SettingError
from rlgkd.scripts import cli
from rlgkd.scripts._console import say
from rlgkd.scripts.runs import generate, train


def test_a_rewards_failure_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*given: Any, **settings: Any) -> Path:
        try:
            raise LookupError("no such page \ud800")  # which UTF-8 cannot write
        except LookupError as error:
            raise RewardError("reward", "64 of 64 samples failed", "fix it") from error

    monkeypatch.setattr(train, "start", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # main would leave its own behind
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "quickstart", "threads=1"])
    (file,) = tmp_path.iterdir()
    line = f"rlgkd: reward: '64 of 64 samples failed' does not work; fix it; its traceback: {file}\n"
    assert (left.value.code, capsys.readouterr().err) == (2, line)
    assert "Traceback" in file.read_text() and r"LookupError: no such page \ud800" in file.read_text()


def test_a_working_folder_that_is_gone_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "MPLBACKEND"):
        monkeypatch.setenv(name, "error")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "quickstart", "env_settings.data=mine.jsonl", "--out", "run"])
    line = "rlgkd: folder: '.' does not work; the working folder is gone; go to one that is there\n"
    assert (left.value.code, capsys.readouterr().err) == (2, line)


@pytest.fixture
def quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "MPLBACKEND"):
        monkeypatch.setenv(name, "error")  # main would leave its own behind


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


@needs_full
@pytest.mark.usefixtures("quiet_libraries")
def test_a_training_goes_on_where_nobody_can_read_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk, and a pipe whose reader has ended: the run died at its next line, without a checkpoint."""
    ended = []

    def start(*given: Any, **settings: Any) -> Path:
        for _ in range(3):
            say(Console(stderr=True), "a line")
            Console(stderr=True).print(Table("a table"))
            print("a warning", file=sys.stderr, flush=True)
            sys.stdout.close()  # as a reward may
        ended.append(True)
        return Path("report.html")

    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(train, "start", start)
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", pipe)
        with pytest.raises(SystemExit) as left:
            cli.main(["train", "quickstart"])
        assert (left.value.code, ended, sys.stdout) == (0, [True], full)


@pytest.mark.usefixtures("quiet_libraries")
def test_a_line_that_is_no_text_is_refused_as_a_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(model: str, read_line: Any, show: Any, **settings: Any) -> None:
        raise SettingError("prompt", read_line(), "it is no text")

    monkeypatch.setattr(generate, "talk", talk)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe9\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", "a-model", "--chat"])
    assert (left.value.code, capsys.readouterr().err) == (
        2,
        r"rlgkd: prompt: '\udce9' does not work; it is no text" + "\n",
    )


@needs_full
def test_output_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "rlgkd.scripts", "list", "recipes"]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "rlgkd: output: 'No space left on device' does not work; it could not be written; look at where it goes\n"
    assert (found.returncode, found.stderr) == (2, line)


@pytest.mark.usefixtures("quiet_libraries")
def test_a_text_is_printed_where_there_is_no_output_and_where_it_has_no_letters_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "complete", lambda *given, **settings: ["\ufffd \xe9"])
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    for stream in (None, out):
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as left:
            cli.main(["generate", "a-model", "a prompt"])
        assert left.value.code == 0
    assert out.buffer.getvalue() == b"\\ufffd \xe9\n"  # type: ignore[attr-defined]


def test_the_plots_of_a_notebook_whose_backend_is_not_here_stop_no_report() -> None:
    code = "from rlgkd.scripts.cli import main\ntry:\n    main(['--version'])\nfinally:\n    import matplotlib.figure"
    environment = {**os.environ, "MPLBACKEND": "module://of_another_environment"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, rlgkd.scripts.cli\nprint(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "stable_baselines3", "matplotlib", "scipy"}
    assert not heavy & set(found.stdout.split())


PROMPT = " A farm was sold by Mara Telby.\nSummary:"


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code in (0, None)
    return capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"rlgkd {rlgkd.__version__}\n"


def test_filters_and_stop_strings_are_options_of_generate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # main would leave its own behind
    greedy = output(capsys, "generate", "embedded:grounded-student", PROMPT, "--greedy").strip()
    for option in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert output(capsys, "generate", "embedded:grounded-student", PROMPT, *option).strip() == greedy
    whole = output(capsys, "generate", "embedded:grounded-student", PROMPT).strip()
    middle = whole[len(whole) // 2 :][:5]
    stopped = output(capsys, "generate", "embedded:grounded-student", PROMPT, "--stop", "no such", "--stop", middle)
    assert whole != greedy and stopped.strip() == whole.split(middle)[0].strip()


def test_filters_are_options_of_evaluate_and_change_the_texts_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    command = ("evaluate", "embedded:grounded-student", "--prompts", "4")
    greedy = output(capsys, *command, "--greedy")
    for option in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert output(capsys, *command, *option) == greedy
    assert output(capsys, *command) != greedy


def test_evaluate_takes_several_texts_of_a_prompt_and_writes_all_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    file = tmp_path / "scores.json"
    command = ("evaluate", "embedded:grounded-student", "--prompts", "2", "--samples", "2", "--out", str(file))
    printed = output(capsys, *command)
    written = json.loads(file.read_text())
    assert "truth@2" in printed and written["scores"]["truth@2"].keys() == {"mean", "low", "high"}
    assert len(written["texts"]) == 4 and len({text["prompt"] for text in written["texts"]}) == 2
    assert f"{written['scores']['reward']['mean']:.4f}" in printed


def test_an_interrupted_command_says_that_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlgkd.scripts.listing.show", interrupted)
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    assert stop.value.code == 130 and capsys.readouterr().err.strip() == "rlgkd: stopped"
