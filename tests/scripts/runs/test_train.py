"""The command line end to end on the embedded models: a run's folder, exact resume, and errors as one line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from rlgkd import agents
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.micro_batch import MicroBatch
from rlgkd.envs import make_sb3_vec_env
from rlgkd.errors import CheckpointError
from rlgkd.evaluation import evaluate
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import rewind, train
from rlgkd.scripts.runs.summary import rewards_of

SMALL = (
    "agent=Reinforce",
    "alpha=0.5",
    "tokens=5000",
    "prompts_per_update=4",
    "group_size=4",
    "eval_prompts=8",
    "checkpoint_every=1",
    "threads=1",
    "learning_rate=0.001",
)
"""About 20 updates of 16 sequences."""


def rlgkd(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlgkd.scripts", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = rlgkd("train", "quickstart", "--out", str(out), "--quiet", *SMALL)
    assert result.returncode == 0, result.stderr
    return out


def test_a_run_leaves_the_promised_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    promised = {
        "config.yaml",
        "progress.csv",
        "times.csv",
        "tensorboard",
        "rollouts.jsonl",
        "checkpoints",
        "model",
        "summary.json",
    }
    assert promised | {"report.html"} <= names
    rows = list(csv.DictReader((finished / "progress.csv").read_text().splitlines()))
    assert [int(row["time/iterations"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(float(row["train/divergence"]) > 0 for row in rows)
    times = list(csv.DictReader((finished / "times.csv").read_text().splitlines()))
    assert [row["time/total_timesteps"] for row in times] == [row["time/total_timesteps"] for row in rows]
    assert all(float(row["time/sampling"]) > 0 and float(row["time/update"]) > 0 for row in times)
    rollouts = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 16 * len(rows)
    assert {"prompt", "completion", "reward", "parts", "stop", "step", "source"} <= rollouts[0].keys()
    summary = json.loads((finished / "summary.json").read_text())
    assert {"truth", "rouge2", "reverse_kl", "reward"} <= summary["change"].keys()
    assert len(summary["examples"]) == 8


def test_the_resolved_config_runs_again_as_it_is(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["tokens"] == 5000
    result = rlgkd("train", str(finished / "config.yaml"), "--out", str(finished / "again"), "--quiet")
    assert result.returncode == 0, result.stderr
    told = (result.stdout + result.stderr).replace("\n", "")  # a log's lines break where a terminal's would
    assert told.count("report.html") == 1, "the report's path is told once"
    assert _outcome(finished / "again") == _outcome(finished)


def test_the_model_opens_with_transformers_alone_and_with_the_agent(finished: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(finished / "model")
    env = make_sb3_vec_env("rlgkd/GroundedSummary-v0")
    agent = agents.Reinforce.load(finished / "model", env=env, learning_rate=1e-3)
    for name, value in module.state_dict().items():
        assert (agent.student.module.state_dict()[name] == value).all()
    assert len(agent.generate([" A farm was sold by Mara Telby.\nSummary:"])[0]) > 0
    assert not [path for path in finished.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin", ".zip")]


def test_a_teacher_that_is_the_start_is_not_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(train, "evaluate", lambda *given, **more: measured.append(given) or evaluate(*given, **more))
    own = "embedded:grounded-student"
    small = ["tokens=64", "prompts_per_update=2", "group_size=2", "eval_prompts=2", "threads=1"]
    for teacher, times in ((own, 2), ("embedded:grounded-teacher", 3)):
        measured.clear()
        settings = read("quickstart", [f"student={own}", f"teacher={teacher}", *small])
        train.start(settings, tmp_path / str(times), quiet=True)
        assert len(measured) == times
    summary = json.loads((tmp_path / "2" / "summary.json").read_text())
    assert summary["teacher_scores"] == summary["before"]
    assert summary["before"]["reverse_kl"]["mean"] == pytest.approx(0.0, abs=1e-6)


def test_references_are_learned_alike_with_a_teacher_which_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log-probabilities made the divergence of such updates negative, and cost a forward pass."""
    small = ["tokens=300", "prompts_per_update=4", "eval_prompts=2", "threads=1", "epochs=2"]
    asked = []
    answers = MicroBatch.outputs_of
    monkeypatch.setattr(MicroBatch, "outputs_of", lambda part, lm: asked.append(lm) or answers(part, lm))
    rows = {}
    for teacher, every in (("embedded:grounded-teacher", 0), ("embedded:grounded-teacher", 3), ("null", 0)):
        out = tmp_path / f"{teacher[:4]}-{every}"
        train.start(read("sft", [f"teacher={teacher}", f"agreement_every={every}", *small]), out, quiet=True)
        with (out / "progress.csv").open() as file:
            rows[out.name] = list(csv.DictReader(file))
        assert bool(asked) is bool(every)
        asked.clear()
        said = "measured and not learned from" in capsys.readouterr().err
        assert said is (teacher != "null")
    for name in ("train/divergence", "train/loss"):
        with_teacher, measured, without = ([row[name] for row in one] for one in rows.values())
        assert with_teacher == measured == without and len(without) > 2 and all(float(value) > 0 for value in without)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in rows]
    assert weights[0] == weights[1] == weights[2]


def test_the_run_can_be_evaluated_and_asked(finished: Path) -> None:
    result = rlgkd("evaluate", str(finished), "--prompts", "8", "--teacher", "embedded:grounded-teacher")
    assert result.returncode == 0, result.stderr
    assert "reverse_kl" in result.stdout and "truth" in result.stdout
    result = rlgkd("generate", str(finished), " A farm was sold by Mara Telby.\nSummary:", "--greedy")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_resumed_ends_like_one_never_stopped(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = ["train", "quickstart", "--out", str(out), "--quiet", *SMALL]
    kills = 0
    for delay in (0.3, 1.1):
        process = subprocess.Popen(
            [sys.executable, "-m", "rlgkd.scripts", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        have = _rows(out)
        while process.poll() is None and _rows(out) <= have + kills and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        arguments = ["train", "--resume", str(out), "--quiet"]
    assert kills == 2
    result = rlgkd(*arguments)
    assert result.returncode == 0, result.stderr
    assert _outcome(out) == _outcome(finished)
    assert _shown_by_tensorboard(out) == _shown_by_tensorboard(finished)


def _shown_by_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that repeat, as TensorBoard shows them: one run, whatever the number of its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    names = [name for name in shown.Tags()["scalars"] if not name.startswith("time/")]
    assert {"train/loss", "rollout/ep_rew_mean"} <= {*names}
    return {name: [(event.step, event.value) for event in shown.Scalars(name)] for name in names}


def test_a_run_that_was_asked_to_stop_saves_the_last_whole_update_and_goes_on(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    arguments = ["train", "quickstart", "--out", str(out), "--quiet", *SMALL, "checkpoint_every=50"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            [sys.executable, "-m", "rlgkd.scripts", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
        )
        deadline, have = time.monotonic() + 300, _rows(out)
        while _rows(out) < have + 4 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == code, said
        assert said.splitlines()[-1] == f"stopped; go on with: rlgkd train --resume {out}"
        updates = _rows(out) - 1
        assert _steps(out)[-1].name == f"step-{updates}" and have <= updates < _rows(finished) - 1
        assert not (out / "model").exists() and not (out / "summary.json").exists()
        arguments = ["train", "--resume", str(out), "--quiet"]
    result = rlgkd(*arguments)
    assert result.returncode == 0, result.stderr
    assert _outcome(out) == _outcome(finished)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no such terminals")
@pytest.mark.parametrize("waits", [True, False])
def test_a_terminal_that_closes_stops_the_run_as_a_signal_does_and_no_print_fails(waits: bool, tmp_path: Path) -> None:
    block = "with stop.at_whole_update(): end(); console.print('x'); saved.touch()" if waits else "end()"
    script = f"""
import sys, time
from pathlib import Path
from rich.console import Console
from rlgkd.scripts.runs.stopping import stoppable
saved, console = Path({str(tmp_path / "saved")!r}), Console(stderr=True)
def end():
    print("ready", flush=True)
    for _ in range(500):
        time.sleep(0.02)
        if stop.number:
            return
with stoppable("rlgkd train --resume 'a run'", console) as stop:
    {block}
"""
    process, terminal = pty.fork()
    if not process:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, for all children too
        os.execv(sys.executable, [sys.executable, "-c", script])
    while b"ready" not in os.read(terminal, 1000):
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").exists() == waits


@pytest.mark.parametrize("waits", [True, False])
def test_a_second_signal_ends_at_once(waits: bool) -> None:
    block = "with stop.at_whole_update(): end(); end()" if waits else "end()"
    script = f"""
import os, signal, time
from rich.console import Console
from rlgkd.scripts.runs.stopping import stoppable
signal.signal(signal.SIGINT, signal.default_int_handler)
end = lambda: os.kill(os.getpid(), signal.SIGINT)
with stoppable("rlgkd train --resume 'a run'", Console(stderr=True)) as stop:
    {block}
    time.sleep(60)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    told = "stopping at a whole update" if waits else "stopped; go on with: rlgkd train --resume 'a run'"
    assert result.returncode == (-signal.SIGINT if waits else 130) and told in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "quickstrat"], ["recipe", "quickstrat", "'quickstart'"]),
        (["train", "quickstart", "alhpa=0.5"], ["alhpa", "'alpha'"]),
        (["train", "quickstart", "alpha=1.5"], ["alpha", "1.5", "in [0, 1]"]),
        (["train", "quickstart", "env=rlgkd/GroundedSumary-v0"], ["env", "'rlgkd/GroundedSummary-v0'"]),
        (["train", "quickstart", "student=embedded:nobody"], ["embedded:nobody", "embedded:grounded-student"]),
        (["train", "quickstart", "student=/no/such/model"], ["/no/such/model", "config.json"]),
        (["train", "quickstart", "agent=Reinforce", "teacher="], ["teacher", "alpha"]),
        (["train", "quickstart", "divergence=jsd"], ["beta"]),
        (["train", "quickstart", "divergence=reverse_lk"], ["reverse_lk", "'reverse_kl'"]),
        (["train", "quickstart", "agent=Reinforce", "alpha=0", "student_fraction=0.5"], ["student_fraction", "0.5"]),
        (["train", "quickstart", "env_settings={max_prompt_tokens: 400}"], ["context", "256"]),
        (
            ["train", "quickstart", "env_settings={max_promt_tokens: 4}"],
            ["env_settings.max_promt_tokens", "'max_prompt_tokens'"],
        ),
        (["train", "quickstart", "env_settings={max_prompt_tokens: 20}"], ["prompt", "20"]),
        (["train", "--resume", "/no/such/run"], ["/no/such/run", "config.yaml"]),
        (["train", "no/such/file.yaml"], ["no/such/file.yaml"]),
        (
            ["train", "rl-gkd", "student=embedded:arithmetic-student"],
            ["student: 'embedded:arithmetic-student'", "environment's"],
        ),
        (
            ["train", "rl-gkd", "teacher=embedded:arithmetic-teacher"],
            ["teacher: 'embedded:arithmetic-teacher'", "student's"],
        ),
        (["train", "env=rlgkd/Dataset-v0", "env_settings.data=mine.csv"], ["student", "rlgkd/Dataset-v0", "teacher"]),
        (
            ["train", "rl-gkd", "env=rlgkd/Dataset-v0", "student=embedded:grounded-student"],
            ["teacher", "alpha is 0.95", "alpha=0"],
        ),
        (
            ["train", "on-policy-kd", "env=rlgkd/Dataset-v0", "student=embedded:grounded-student"],
            ["teacher", "alpha is 1: set teacher=..."],
        ),
        (["train", "student=embedded:nobody"], ["student: 'embedded:nobody'", "choose one of"]),
        (
            ["train", "env=rlgkd/Dataset-v0", "env_settings.data=mine.csv", "student=/nowhere", "alpha=0"],
            ["student: '/nowhere'", "no such folder"],
        ),
        (
            [
                "train",
                "env=rlgkd/Guess-v0",
                "student=embedded:grounded-student",
                "alpha=0",
                "env_settings.tokenizer=/no",
            ],
            ["env_settings.tokenizer: '/no'", "no such folder"],
        ),
        (["train", "teacher=embedded:nobody"], ["teacher: 'embedded:nobody'", "choose one of"]),
        (["evaluate", "embedded:nobody"], ["embedded:nobody"]),
        (
            ["evaluate", "embedded:arithmetic-student"],
            ["model: 'embedded:arithmetic-student'", "environment rlgkd/GroundedSummary-v0"],
        ),
        (
            ["evaluate", "embedded:grounded-student", "--teacher", "embedded:arithmetic-teacher"],
            ["teacher: 'embedded:arithmetic-teacher'", "model's"],
        ),
        (["evaluate", "embedded:grounded-student", "--teacher", "/nowhere"], ["teacher: '/nowhere'", "no such folder"]),
        (["evaluate", "embedded:grounded-student", "tokens=3"], ["tokens", "env_settings.NAME"]),
        (["evaluate", "embedded:grounded-student", "env_settings=3"], ["env_settings", "3"]),
        (["train", "quickstart", "--out", "n" * 300], ["nnn", "too long", "give another --out"]),
        (["train", "a\0.yaml"], ["null byte"]),
        (["train", "quickstart", "name=&a [*a]"], ["name", "YAML"]),
        (["train", "quickstart", "env=CartPole-v1"], ["env: 'CartPole-v1'", "rlgkd/"]),
        (["train", "env=nothing:here", "student=embedded:grounded-student"], ["env: 'nothing:here'", "imported"]),
        (["evaluate", "embedded:grounded-nli"], ["writes no texts"]),
        (["evaluate", "embedded:grounded-student", "--temperature", "inf"], ["temperature: inf"]),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rlgkd.scripts.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlgkd.scripts.cli import main

    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit) as stop:
        main(["train", "quickstart", "--out", str(tmp_path), "--quiet"])
    assert stop.value.code == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_checkpoint_falls_back_to_the_whole_one_before_it(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    newest = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = rlgkd("train", "--resume", str(out), "--quiet")
    assert result.returncode == 0, result.stderr
    assert _outcome(out) == _outcome(finished)


def _steps(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))


def _shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def _damage_all(run: Path) -> None:
    for step in _steps(run):
        _shorten(step / "optimizer.json")


def _empty(run: Path) -> None:
    for step in _steps(run):
        shutil.rmtree(step)
    (run / "summary.json").unlink()


@pytest.fixture(scope="module")
def agent(finished: Path) -> TextAlgorithm:
    return train.build_agent(read(finished / "config.yaml"))


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (_damage_all, r"step-\d+/optimizer\.json is truncated .*step-\d+/optimizer\.json is truncated"),
        (lambda run: shutil.rmtree(run / "checkpoints"), r"checkpoints is missing or empty after \d+ updates"),
        (_empty, r"checkpoints is missing or empty after \d+ updates"),
        (lambda run: (run / "progress.csv").unlink(), r"progress\.csv has 0 of the \d+ updates of step-"),
        (
            lambda run: (run / "progress.csv").write_bytes(b"\xff,\n" * 100),
            r"progress\.csv lacks the \d+ tokens in row",
        ),
        (lambda run: (run / "rollouts.jsonl").unlink(), r"rollouts\.jsonl has 0 of the \d+ bytes of step-"),
    ],
)
def test_a_run_whose_checkpoints_are_lost_is_refused_and_left_as_it_is(
    lose: Callable[[Path], None], words: str, finished: Path, agent: TextAlgorithm, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "lost", ignore=shutil.ignore_patterns("model", "again")))
    lose(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=words) as caught:
        rewind.rewind(read(out / "config.yaml"), agent, out, Console(stderr=True))
    assert f"rlgkd train {out / 'config.yaml'} --out" in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["progress.csv", "times.csv", "rollouts.jsonl", ".lock"])
def test_no_link_in_a_run_is_followed(name: str, finished: Path, agent: TextAlgorithm, tmp_path: Path) -> None:
    out, victim = tmp_path / "linked", tmp_path / "victim.txt"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("model", "again"))
    victim.write_text("precious")
    (out / name).unlink()
    (out / name).symlink_to(victim)
    with pytest.raises(CheckpointError, match=f"{name}' does not work; it is a link"), train.locked(out):
        rewind.rewind(read(out / "config.yaml"), agent, out, Console(stderr=True))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "sizes",
    [
        {"rollouts.jsonl": 0, "../victim.txt": 0},
        {"/etc/hosts": 0},
        {"rollouts.jsonl": "0"},
        {"rollouts.jsonl": True},
        [],
        None,
    ],
)
def test_a_checkpoint_cuts_no_file_but_the_run_s(
    sizes: Any, finished: Path, agent: TextAlgorithm, tmp_path: Path
) -> None:
    out, victim = tmp_path / "foreign", tmp_path / "victim.txt"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("model", "again"))
    victim.write_text("precious")
    newest = _steps(out)[-1]
    state = json.dumps(json.loads((newest / "state.json").read_text()) | {"sizes": sizes}).encode()
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (newest / "state.json").write_bytes(state)
    (newest / "manifest.json").write_text(json.dumps(manifest))
    before = (out / "rollouts.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"step-\d+' does not work; its state\.json"):
        rewind.rewind(read(out / "config.yaml"), agent, out, Console(stderr=True))
    assert victim.read_text() == "precious" and (out / "rollouts.jsonl").read_bytes() == before


def test_a_run_that_had_no_checkpoint_yet_begins_again(finished: Path, agent: TextAlgorithm, tmp_path: Path) -> None:
    out = tmp_path / "early"
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "progress.csv", "times.csv", "rollouts.jsonl"):
        lines = (finished / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(lines if name == "config.yaml" else lines[:2]))
    rewind.rewind(read(out / "config.yaml"), agent, out, Console(stderr=True))
    assert [(out / name).read_bytes() for name in ("progress.csv", "times.csv", "rollouts.jsonl")] == [b""] * 3


def test_a_log_shorter_than_the_newest_checkpoint_falls_back_to_the_older_one(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "short", ignore=shutil.ignore_patterns("model", "again")))
    _shorten(out / "rollouts.jsonl")
    (out / "times.csv").unlink()
    older, newest = _steps(out)
    result = rlgkd("train", "--resume", str(out), "--quiet", env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "going on from" in line]
    assert line.startswith(f"going on from {older.name}: rollouts.jsonl has ") and line.endswith(f" of {newest.name}")
    assert _outcome(out) == _outcome(finished)


REWARDS = """
def zero(completions):
    return [0.0] * len(completions)

def sometimes(completion):
    if len(completion) % 9 == 0:
        raise LookupError("no such\\nword")
    return len(completion) / 100
"""


def _reward_of(run: Path, monkeypatch: pytest.MonkeyPatch, reward: str, *more: str) -> tuple[dict[str, Any], str]:
    """What summary.json and report.html say of a small run with this reward."""
    run.parent.mkdir()
    (run.parent / "some_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(run.parent)
    env_settings = (
        f"{{reward: 'some_rewards:{reward}', max_prompt_tokens: 64, max_new_tokens: 16, max_failed_rewards: 1}}"
    )
    page = train.start(
        read(
            "quickstart",
            [
                *SMALL,
                "env=rlgkd/Dataset-v0",
                "student=embedded:grounded-student",
                "teacher=embedded:grounded-teacher",
                f"env_settings={env_settings}",
                "tokens=2000",
                *more,
            ],
        ),
        run,
        quiet=True,
    )
    return json.loads((run / "summary.json").read_text())["rewards"], page.read_text()


def test_a_run_says_how_many_rewards_failed_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there" / "run"
    told, page = _reward_of(out, monkeypatch, "sometimes")
    records = [_strictly(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    _strictly((out / "summary.json").read_text())
    failed = [record for record in records if "failure" in record]
    assert 0 < len(failed) < len(records) and all(record["reward"] is None for record in failed)
    first = "LookupError: no such word"
    assert told == {"scored": len(records), "failed": len(failed), "first_failure": first, "always": None}
    line = f"The reward failed for {len(failed)} of {len(records)} samples, which were left out. First: {first}"
    assert line in page and line in " ".join(capsys.readouterr().err.split())
    text = (out / "rollouts.jsonl").read_text()
    (out / "rollouts.jsonl").write_text(text.replace('"reward": null', '"reward": NaN'))  # as older versions wrote it
    agent = SimpleNamespace(constant_reward=None)
    assert text != (out / "rollouts.jsonl").read_text() and rewards_of(out, agent) == told  # type: ignore[arg-type]


def _strictly(text: str) -> Any:
    """What a strict reader makes of JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_says_that_its_reward_was_always_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, page = _reward_of(tmp_path / "there" / "run", monkeypatch, "zero")
    assert told["always"] == 0.0 and told["failed"] == 0
    assert "reward: the same, 0.000, for all" in caplog.text
    line = "The reward was the same, 0.000, for all samples: nothing to learn from; look at rollouts.jsonl."
    assert line in page and line in " ".join(capsys.readouterr().err.split())


def test_a_run_of_adapters_keeps_those_alone_in_its_checkpoints_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    more = ("teacher=embedded:grounded-student", "lora_rank=2", "gradient_checkpointing=true", "tokens=1500")
    result = rlgkd("train", "quickstart", "--out", str(whole), "--quiet", *SMALL, *more)
    assert result.returncode == 0, result.stderr
    newest = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    size = (whole / "model" / "model.safetensors").stat().st_size
    assert (newest / "model.safetensors").stat().st_size < size / 5
    AutoModelForCausalLM.from_pretrained(whole / "model")
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / newest.name)
    shutil.rmtree(out / "model")
    result = rlgkd("train", "--resume", str(out), "--quiet")
    assert result.returncode == 0, result.stderr
    assert _outcome(out) == _outcome(whole)
    before, again = (json.loads((run / "summary.json").read_text()) for run in (whole, out))
    assert again["before"] == before["before"], "the evaluation of the start saw what was trained"


def _outcome(run: Path) -> tuple[bytes, ...]:
    return tuple((run / name).read_bytes() for name in ("model/model.safetensors", "progress.csv", "rollouts.jsonl"))


def _rows(run: Path) -> int:
    file = run / "progress.csv"
    return len(file.read_text().splitlines()) if file.exists() else 0
