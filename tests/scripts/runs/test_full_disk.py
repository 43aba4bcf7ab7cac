"""A disk that is full while a run writes: one line, exit code 2, whole records, and a run that goes on.

A limit on the size of files stands for the full disk: the same system calls fail, in the middle of what is written.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rlgkd.checkpoint import GrowingFile, atomic_write
from rlgkd.errors import CheckpointError
from rlgkd.scripts.report.html import write_report
from rlgkd.scripts.runs import events, train
from rlgkd.scripts.runs.rollouts import damaged_lines, records
from rlgkd.scripts.runs.tables import ProgressCsv


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def grow(folder: Path) -> None:
    with GrowingFile(folder / "rollouts.jsonl") as file:
        for _ in range(100):
            file.write(json.dumps({"completion": "a text"}) + "\n")


def progress(folder: Path) -> None:
    table = ProgressCsv(folder / "progress.csv")
    for _ in range(300):
        table.write({"train/loss": 0.5}, {"train/loss": ()})


def write_events(folder: Path) -> None:
    with closing(events.Events(folder / "tensorboard")) as writer:
        for step in range(100):
            writer.write({"train/loss": 0.5}, {"train/loss": ()}, step)


WRITERS = [grow, progress, write_events, lambda folder: atomic_write(folder / "summary.json", "x" * 1000), write_report]


@pytest.mark.parametrize("write", WRITERS, ids=["rollouts", "progress", "tensorboard", "summary", "report"])
def test_a_write_that_fails_is_one_line_and_leaves_whole_records(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    message = r"it was not written \(File too large\): free space"
    with pytest.raises(CheckpointError, match=message) as caught, largest_file(700):
        write(tmp_path)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "a temporary file was left"
    for path in (tmp_path / "rollouts.jsonl", tmp_path / "progress.csv"):
        if path.exists():
            text = path.read_text()
            assert text.endswith("\n") and len(set(text.splitlines()[1:])) == 1 and len(text) > 600


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"it was not written \(Not a directory\): look at its path"):
        GrowingFile(tmp_path / "file" / "rollouts.jsonl")


def test_events_are_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = events.Events(tmp_path)
    writer.write({"a/b": 0.5, "hidden": 1.0, "text": "x"}, {"a/b": (), "hidden": ("tensorboard",), "text": ()}, 7)
    writer.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["a/b"]
    assert [(event.step, event.value) for event in found.Scalars("a/b")] == [(7, 0.5)]


def test_events_after_the_checkpoint_that_a_run_goes_on_from_are_dropped_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for part, (begin, tokens) in enumerate([(0, (10, 20, 30)), (20, (31, 40)), (40, (55,))]):
        writer = events.Events(tmp_path, begin)
        for step in tokens:
            writer.write({"part": part}, {"part": ()}, step)
        writer.close()
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("part")
    assert [(event.step, event.value) for event in scalars] == [(10, 0), (20, 0), (31, 1), (40, 1), (55, 2)]


def test_texts_are_a_table_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = events.Events(tmp_path)
    writer.texts([{"prompt": "a|b\n# c", "reward": 0.5}, {"prompt": "`d`", "reward": None}], 7)
    writer.texts([], 8)
    writer.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    (event,) = read.Tensors("texts/text_summary")
    table = "| prompt | reward |\n| --- | --- |\n| `a\N{BROKEN BAR}b # c` | `0.5` |\n| `'d'` | `None` |"
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (7, table)
    assert read.SummaryMetadata("texts/text_summary").plugin_data.plugin_name == "text"


def test_without_tensorboard_a_run_has_no_events_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with caplog.at_level(logging.WARNING):
        assert events.events_if_installed(tmp_path) == []
    assert "pip install 'rlgkd[tensorboard]'" in caplog.text


def test_damaged_lines_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    whole = json.dumps(dict.fromkeys(("step", "key", "source", "completion", "reward", "stop"), 1))
    path.write_bytes(f"{whole}\n{whole[:20]}\n\xff\n[1]\n{whole}\n".encode("latin-1"))
    assert damaged_lines(path) == [2, 3, 4] and len(list(records(path))) == 2


def test_a_run_on_a_full_disk_ends_with_one_line_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlgkd.scripts.cli import main

    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "error")  # the command sets them
    out = tmp_path / "run"
    arguments = ["train", "quickstart", "--out", str(out), "--quiet", "alpha=0", "teacher=", "tokens=300"]
    arguments += ["prompts_per_update=4", "group_size=2", "eval_prompts=2", "threads=1", "learning_rate=0.001"]
    with pytest.raises(SystemExit) as stop, largest_file(5000):
        main(arguments)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and line.startswith("rlgkd: ") and "it was not written (File too large)" in line
    assert damaged_lines(out / "rollouts.jsonl") == []
    train.resume(out, quiet=True)
    assert (out / "model" / "model.safetensors").is_file()
