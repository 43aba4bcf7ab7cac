"""Settings that change before a run goes on: honoured and said, or refused before anything is touched.

The behaviours guarded: an edit of config.yaml and `--resume RUN key=value` are the same; a change is in console,
summary.json and report, with the tokens at which it was made, also after further stops; what a checkpoint holds besides
the weights does not win over a setting; what cannot change is refused in one line and leaves every byte.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.errors import SettingError
from rlgkd.scripts.config.changes import NEEDS_A_NEW_RUN, changes
from rlgkd.scripts.config.reading import check, read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.remarks import remarks
from rlgkd.scripts.report.run_files import read_run
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.changed_settings import changed_settings
from rlgkd.scripts.runs.tables import read_rows

SMALL = [
    "alpha=0.5",
    "tokens=300",
    "prompts_per_update=4",
    "group_size=2",
    "eval_prompts=2",
    "checkpoint_every=2",
    "threads=1",
    "learning_rate=0.001",
    "weight_decay=0.1",
    "env_settings.max_new_tokens=16",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.start(read("quickstart", SMALL), out, quiet=True)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(run: Path, **values: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **values}))


def column(run: Path, name: str) -> list[float]:
    names, rows = read_rows(run / "progress.csv")
    return [float(row[names.index(name)]) for row in rows]


def content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_more_tokens_and_other_settings_are_honoured_and_said_everywhere(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = int(column(run, "time/total_timesteps")[-1])
    before = len(column(run, "train/alpha"))
    edit(run, alpha=0.25, weight_decay=0.2)
    train.resume(run, ["tokens=600"], quiet=True)
    said = capsys.readouterr().err
    whole = ["alpha: 0.5 -> 0.25", "weight_decay: 0.1 -> 0.2", "tokens: 300 -> 600"]
    assert all(f"changed: {change} after {tokens} tokens" in said for change in whole)
    assert "schedules now end at 600 tokens: the learning rate goes on at" in said
    assert yaml.safe_load((run / "config.yaml").read_text())["tokens"] == 600
    alphas = column(run, "train/alpha")
    assert alphas[:before] == [0.5] * before and alphas[before:] and set(alphas[before:]) == {0.25}
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    groups = json.loads((newest / "optimizer.json").read_text())["groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0], "the checkpoint's own won over the setting"
    # A second part knows of the first.
    train.resume(run, ["tokens=800"], quiet=True)
    found = json.loads((run / "summary.json").read_text())["changes"]
    assert sorted((change["setting"], change["tokens"] == tokens) for change in found) == [
        ("alpha", True),
        ("tokens", False),
        ("tokens", True),
        ("weight_decay", True),
    ]
    sentences = remarks(read_run(run).summary)
    assert f"A setting was changed while the run was stopped: alpha: 0.5 -> 0.25 after {tokens} tokens." in sentences
    assert "alpha: 0.5 -&gt; 0.25 after" in (run / "report.html").read_text()


def test_a_run_that_is_not_changed_says_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.resume(run, quiet=True)
    assert "changed:" not in capsys.readouterr().err
    assert "changes" not in json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["seed=3"], "seed: 3 .*every sample follows from it: set it back to 0"),
        (["agent=GRPO"], "agent: 'GRPO' .*that agent's"),
        (["student=embedded:grounded-teacher"], "student: .*is of that model: set it back"),
        (["env=rlgkd/Arithmetic-v0", "env_settings={}"], "(student|env): "),
        (["lora_rank=2"], "lora_rank: 2 "),
        (["teacher_decay=0.9", "teacher=embedded:grounded-student"], "teacher: .*the teacher that moved"),
        (["tokens=100"], r"tokens: 100 .*has trained for \d+ already; give more"),
        (["alpha=0.25"], r"alpha: 0.25 .*has all its tokens.*give tokens above \d+ too"),
    ],
)
def test_what_cannot_change_is_refused_and_nothing_is_touched(change: list[str], words: str, run: Path) -> None:
    before = content(run)
    with pytest.raises(SettingError, match=words) as caught:
        train.resume(run, change, quiet=True)
    assert "\n" not in str(caught.value)
    assert content(run) == before


def test_a_path_whose_target_was_moved_is_no_change(tmp_path: Path) -> None:
    def settings(folder: Path) -> RunConfig:
        env_settings = {"data": [str(folder / "a.jsonl")], "reward": f"{folder}/mine.py:good"}
        return check({"agent": "Reinforce", "student": str(folder), "env_settings": env_settings})

    here, there = (tmp_path / name / "student" for name in ("a", "b"))
    there.mkdir(parents=True)
    for name in ("a.jsonl", "mine.py"):
        (there / name).touch()
    assert changes(settings(here), settings(there), 0) == []
    here.mkdir(parents=True)  # two models of one name
    with pytest.raises(SettingError, match="student: "):
        changes(settings(here), settings(there), 0)


def test_the_settings_that_need_a_new_run_exist() -> None:
    """A setting that is renamed must not fall out of the table."""
    known = {*check({"agent": "Reinforce"}).flat(), "env_settings.tokenizer"}
    assert NEEDS_A_NEW_RUN.keys() <= known


@pytest.mark.parametrize(
    "change", [{"teacher_device": "cpu"}, {"rows_at_once": 2}, {"compile_decoding": True}, {"save_adapter": True}]
)
def test_what_does_not_train_may_change_after_the_last_token(change: dict[str, object]) -> None:
    before, now = (RunConfig(agent="GRPO", tokens=600, lora_rank=2, **more) for more in ({}, change))
    assert [found.setting for found in changes(before, now, 600)] == [*change]


def test_the_precision_of_the_saved_model_may_change_after_the_last_token(run: Path) -> None:
    train.resume(run, ["saved_dtype=bfloat16"], quiet=True)
    assert json.loads((run / "model" / "config.json").read_text())["dtype"] == "bfloat16"


STEERED = {"agent": "Reinforce", "tokens": 1000, "divergence_target": 0.1}


@pytest.mark.parametrize(
    ("before", "now", "stage", "again"),
    [
        ({"alpha": 0.5}, {"alpha": 0.5}, 0, False),
        ({"alpha": 0.5}, {"alpha": 0.7}, 0, True),
        ({"alpha": 0.5}, {"alpha": 0.5, "divergence_target": 0.2}, 0, False),
        (
            {"stages": [{"alpha": 0.5, "until": 0.5}, {"alpha": 0.2}]},
            {"stages": [{"alpha": 0.5, "until": 0.5}, {"alpha": 0.7}]},
            1,
            True,
        ),
        (
            {"stages": [{"alpha": 0.5, "until": 0.5}, {"alpha": 0.2}]},
            {"stages": [{"alpha": 0.9, "until": 0.4}, {"alpha": 0.2}]},
            1,
            False,
        ),
        (
            {"alpha": 0.5, "stages": [{"until": 0.5}, {"alpha": 0.2}]},
            {"alpha": 0.9, "stages": [{"until": 0.5}, {"alpha": 0.2}]},
            1,
            False,
        ),
        (
            {"stages": [{"alpha": 0.5, "until": 0.5}, {"alpha": 0.2}]},
            {"stages": [{"alpha": 0.5, "until": 0.4}, {"alpha": 0.6, "until": 0.8}, {"alpha": 0.2}]},
            1,
            True,
        ),
        ({"alpha": 0.5, "stages": [{"until": 0.5}, {"alpha": 0.2}]}, {"alpha": 0.5, "stages": []}, 1, True),
        ({"stages": [{"alpha": 0.5, "until": 0.5}, {"alpha": 0.2}]}, {"stages": [{"alpha": 0.2}]}, 1, False),
    ],
)
def test_a_steered_alpha_begins_again_if_the_present_stages_own_is_another(
    before: dict[str, object], now: dict[str, object], stage: int, again: bool, tmp_path: Path
) -> None:
    state = {"settings": json.loads(json.dumps(check({**STEERED, **before}).flat()))}
    changed = changed_settings(tmp_path, state, check({**STEERED, **now}), 10, stage, Console(file=io.StringIO()))
    assert changed.alpha is again and bool(changed.new) == (before != now)
