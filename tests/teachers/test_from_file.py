"""A teacher's file equals the teacher, and whatever is not its own is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file, save_file
from stable_baselines3.common.logger import Logger
from teacher_server import serving

from rlgkd.agents import Distill, Reinforce
from rlgkd.errors import CheckpointError, DataError, RlgkdError, SettingError, TeacherError
from rlgkd.lm import load, load_tokenizer
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import evaluate, train
from rlgkd.scripts.runs.teach import teach
from rlgkd.teachers import collate
from rlgkd.teachers.file_format import FORMAT
from rlgkd.teachers.from_file import FileTeacher
from rlgkd.teachers.module import ModuleTeacher

STUDENT, TEACHER, ENV = "embedded:grounded-student", "embedded:grounded-teacher", "rlgkd/GroundedSummary-v0"
PROMPTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the teacher's log-probabilities: of the references, and of its own texts."""
    folder = tmp_path_factory.mktemp("teachers")
    for texts in ("references", "teacher"):
        teach(
            "quickstart", teacher=TEACHER, top_k=64, out=folder / f"{texts}.safetensors", texts=texts, prompts=PROMPTS
        )
    return folder


def agent_of(teacher: object, **settings: object) -> Distill:
    settings = {"prompts_per_update": 4, "learning_rate": 1e-3, "student_fraction": 0.0, "train_prompts": 8, **settings}
    agent = Distill(STUDENT, ENV, teacher=teacher, device="cpu", seed=0, **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def losses(agent: Distill) -> list[float]:
    agent.learn(100)
    return [row["train/divergence"] for row in agent.rows.rows]


@pytest.mark.parametrize("name", ["forward_kl", "jsd(0.9)"])
def test_training_from_the_file_is_that_with_the_teacher(folder, name) -> None:
    """To half precision of the log-probabilities: one part in 2,000 of each."""
    ours = losses(agent_of(folder / "references.safetensors", divergence=name, teacher_top_k=16))
    live = losses(agent_of(TEACHER, divergence=name, teacher_top_k=16))
    assert len(live) > 1 and ours == pytest.approx(live, rel=2e-3, abs=1e-4)


def test_what_the_file_says_is_what_the_teacher_says_in_half_precision(folder) -> None:
    agent = agent_of(TEACHER)
    items = [agent.task.item("train", 0, n) for n in range(PROMPTS)]
    episodes, lengths = agent.sources.off_policy(items, range(PROMPTS)), None
    lengths = [episode.length for episode in episodes]
    live, file = (
        collate([answer.result() for answer in teacher.submit(episodes)], lengths, "cpu")
        for teacher in (
            ModuleTeacher(agent.teacher, 64, TEACHER),
            FileTeacher(str(folder / "references.safetensors"), agent.student.tokenizer),
        )
    )
    assert torch.equal(live.ids_NK, file.ids_NK)
    for name in ("logp_NK", "rest_N", "token_logp_N"):
        torch.testing.assert_close(getattr(live, name), getattr(file, name), rtol=2**-11, atol=1e-7)
    total_N = torch.logaddexp(live.logp_NK.logsumexp(-1), live.rest_N)
    torch.testing.assert_close(total_N, torch.zeros_like(total_N), atol=1e-5, rtol=0)


def test_the_teachers_texts_come_from_the_file_as_it_wrote_them(folder) -> None:
    agent = agent_of(folder / "teacher.safetensors", off_policy="teacher", teacher_top_k=16)
    live = agent_of(TEACHER, off_policy="teacher", teacher_top_k=16)
    items = [agent.task.item("train", 0, n) for n in range(PROMPTS)]
    ours, theirs = (one.sources.off_policy(items, range(PROMPTS)) for one in (agent, live))
    for file, written in zip(ours, theirs, strict=True):
        assert file.tokens_T.tolist() == written.tokens_T.tolist() and file.stop == written.stop
        assert file.source == "teacher"
    assert np.isfinite(losses(agent)).all()


def test_a_server_writes_the_same_file_as_the_model(folder, tmp_path) -> None:
    with serving(load(TEACHER), load_tokenizer(TEACHER)) as server:
        teach("quickstart", teacher=server.url, top_k=64, out=tmp_path / "served.safetensors", prompts=2)
        server.do_wrong(None, *["garbage"] * 3)
        with pytest.raises(TeacherError, match="nothing was written"):
            teach("quickstart", teacher=server.url, top_k=64, out=tmp_path / "failed.safetensors", prompts=2)
    assert not (tmp_path / "failed.safetensors").exists()
    served, own = load_file(tmp_path / "served.safetensors"), load_file(folder / "references.safetensors")
    for name in ("keys", "tokens", "actions", "token_offsets", "offsets"):
        assert np.array_equal(served[name], own[name][: len(served[name])])
    rows = len(served["token_logp"])
    np.testing.assert_allclose(served["logp"].astype(float), own["logp"][:rows].astype(float), rtol=2e-3, atol=1e-5)


def test_a_data_file_is_taught_by_its_name(tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f" The mayor opened {n} markets.\nSummary:", "reference": f" {n} markets."} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out" / "taught.safetensors"
    limits = ("env_settings.max_prompt_tokens=64", "env_settings.max_new_tokens=32")
    teach(str(data), ["env_settings.reward=exact", *limits], teacher=TEACHER, top_k=4, out=out)
    teacher = FileTeacher(str(out), load_tokenizer(TEACHER))
    assert teacher.top_k == 4 and teacher.contents.teacher == TEACHER and len(teacher._rows) >= 6


def test_a_run_with_a_file_has_no_divergence_in_its_evaluations_and_resumes(folder, tmp_path) -> None:
    small = ("tokens=30", "prompts_per_update=4", "train_prompts=8", "eval_prompts=1", "warmup=0", "threads=1")
    file = f"teacher={folder / 'references.safetensors'}"
    settings = read("quickstart", ["agent=Distill", "alpha=1", "student_fraction=0", *small, file, "advantage=raw"])
    train.start(settings, tmp_path / "run", quiet=True)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "reverse_kl" not in summary["before"] and summary["updates"] > 0
    train.resume(tmp_path / "run", ["tokens=120"], quiet=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["updates"] > summary["updates"]
    with pytest.raises(SettingError, match=r"teacher: .* give a live teacher"):
        evaluate.show(
            STUDENT,
            env="",
            split="test",
            prompts=2,
            teacher=file.partition("=")[2],
            temperature=None,
            greedy=False,
            seed=0,
            top_k=None,
            top_p=None,
            min_p=None,
        )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"student_fraction": 0.5}, "student_fraction.* none of the student's own texts: set it to 0"),
        ({"teacher_temperature": 2.0}, "teacher_temperature"),
        ({"teacher_top_k": 65}, "teacher_top_k: 65 .* has the top 64 of each token; set it to 64"),
        ({"off_policy": "teacher"}, "off_policy: 'teacher' .* texts of the references; set it to references"),
        ({"teacher_texts": "texts.jsonl", "off_policy": "teacher"}, "teacher_texts"),
        ({"train_prompts": 9}, "does not have the reference of 'train/.*; write it again with rlgkd teach"),
    ],
)
def test_what_the_file_cannot_give_is_refused_before_training(folder, settings, match) -> None:
    with pytest.raises((SettingError, DataError), match=match):
        agent_of(str(folder / "references.safetensors"), **settings)


def test_a_change_on_the_way_cannot_ask_for_texts_that_the_file_does_not_have(folder) -> None:
    agent = agent_of(str(folder / "references.safetensors"))
    agent.check_change(agent.Config(**agent.config.flat()))
    with pytest.raises(SettingError, match=r"off_policy: 'teacher' .*texts of the references; set it to references"):
        agent.check_change(agent.Config(**{**agent.config.flat(), "off_policy": "teacher"}))


def test_reinforcement_learning_needs_a_live_teacher(folder) -> None:
    with pytest.raises(SettingError, match="none of the student's own texts"):
        Reinforce(STUDENT, ENV, teacher=str(folder / "references.safetensors"), device="cpu", alpha=0.5)


def damaged(source: Path, out: Path, **changed: np.ndarray) -> str:
    save_file({**load_file(source), **changed}, out, metadata(source))
    return str(out)


def metadata(source: Path) -> dict[str, str]:
    size = int.from_bytes(source.read_bytes()[:8], "little")
    return json.loads(source.read_bytes()[8 : 8 + size])["__metadata__"]


def test_files_that_are_damaged_or_of_something_else_are_refused_in_one_line(folder, tmp_path) -> None:
    source = folder / "references.safetensors"
    whole, tokenizer = load_file(source), load_tokenizer(STUDENT)

    def refused(path: object, match: str) -> None:
        with pytest.raises(RlgkdError, match=match) as raised:
            teacher = FileTeacher(str(path), tokenizer)
            agent = agent_of(TEACHER)
            teacher.submit(agent.sources.off_policy([agent.task.item("train", 0, 0)], [0]))
        assert "\n" not in str(raised.value)

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(source.read_bytes()[:-10])
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    other = tmp_path / "other.safetensors"
    save_file(whole, other, {"format": "pt"})
    half_known = whole["logp"].copy()
    half_known[0, 0] = np.nan
    for path, match in (
        (cut, "could not be read"),
        (empty, "could not be read"),
        (tmp_path / "missing.safetensors", "could not be read"),
        (tmp_path, "it is a folder"),
        (other, "no file that rlgkd teach has written"),
        (damaged(source, tmp_path / "a.safetensors", ids=whole["ids"][:-1]), "its ids has the shape"),
        (damaged(source, tmp_path / "b.safetensors", logp=half_known), "are damaged"),
        (damaged(source, tmp_path / "c.safetensors", ids=whole["ids"] + 900), "are damaged"),
        (damaged(source, tmp_path / "e.safetensors", offsets=whole["offsets"][:0]), "could not be read"),
        (damaged(source, tmp_path / "d.safetensors", keys=whole["keys"][::-1].copy()), "are damaged|does not have"),
    ):
        refused(path, match)
    assert metadata(source)["format"] == FORMAT
    with pytest.raises(DataError, match="another tokenizer than the student's"):
        FileTeacher(str(source), load_tokenizer("embedded:translate-student"))


@pytest.mark.parametrize("name", ["logp", "ids", "rest", "token_logp", "checks"])
def test_a_bit_that_flipped_on_the_disk_is_found(folder, tmp_path, name) -> None:
    source = folder / "references.safetensors"
    values = load_file(source)[name].copy()
    values.view(np.uint8).reshape(-1)[0] ^= 1
    teacher = FileTeacher(damaged(source, tmp_path / "x.safetensors", **{name: values}), load_tokenizer(STUDENT))
    agent = agent_of(TEACHER)
    items = [agent.task.item("train", 0, n) for n in range(PROMPTS)]
    with pytest.raises(DataError, match="are damaged; write it again with rlgkd teach"):
        teacher.submit(agent.sources.off_policy(items, range(PROMPTS)))


def test_a_file_of_before_the_hashes_opens_too(folder, tmp_path) -> None:
    source = folder / "references.safetensors"
    older = {name: values for name, values in load_file(source).items() if name != "checks"}
    save_file(older, tmp_path / "older.safetensors", metadata(source))
    assert losses(agent_of(tmp_path / "older.safetensors")) == losses(agent_of(source))


def test_that_the_file_cannot_be_written_is_known_before_the_teacher_works(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it was not written"):
        teach("quickstart", teacher=TEACHER, top_k=4, out=tmp_path / "file" / "x.safetensors", prompts=2)
    assert "texts of the references" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"texts": "own"}, "give references or teacher"),
        ({"out": Path("file.bin")}, "ends with .safetensors"),
        ({"prompts": None}, "say how many of them"),
        ({"teacher": "other.safetensors"}, "name the model, or the server"),
        ({"teacher": "http://127.0.0.1:9", "texts": "teacher"}, "a served teacher writes none"),
    ],
)
def test_teach_refuses_what_it_cannot_do(tmp_path, settings, match) -> None:
    given = {"teacher": TEACHER, "top_k": 4, "out": tmp_path / "x.safetensors", "prompts": 2, **settings}
    with pytest.raises(SettingError, match=match):
        teach("quickstart", **given)
