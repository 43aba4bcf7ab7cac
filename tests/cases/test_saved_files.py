"""What an agent saves: its permissions, and that it is whole."""

from __future__ import annotations

import os
import resource

import pytest
import tiny
import torch

from rlgkd.agents import PPO, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import CheckpointError

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("kind", ["value head and moving teacher", "LoRA"])
def test_saved_files_follow_the_umask(tmp_path, umask, kind):
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=2)
    student, teacher = (tiny.model(vocabulary=4, seed=seed) for seed in (0, 1))
    if kind == "LoRA":
        agent = Reinforce(student, env, alpha=0.0, prompts_per_update=1, group_size=2, lora_rank=2)
    else:
        agent = PPO(student, env, teacher=teacher, teacher_decay=0.5, alpha=0.5, prompts_per_update=1, group_size=2)
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o755)
    agent.save(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = {str(path.relative_to(folder)) for path in files if path.suffix == ".safetensors"}
    others = set() if kind == "LoRA" else {"value.safetensors", "teacher/model.safetensors"}
    assert weights == {"model.safetensors", *others}
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o666 & ~umask for path in files}


@pytest.mark.parametrize("cls", [Reinforce, PPO])
def test_a_save_that_fails_leaves_the_older_one_whole(tmp_path, cls):
    """It wrote over the older files, one after the other, so that a full disk lost both."""
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=1)
    agent = cls(tiny.model(vocabulary=4), env, alpha=0.0, prompts_per_update=1, group_size=2)
    agent.save(tmp_path / "agent")
    (tmp_path / "agent" / "notes.txt").write_text("the user's own")
    before = {path.name: path.read_bytes() for path in (tmp_path / "agent").iterdir()}
    with torch.no_grad():
        for part in agent.student.module.parameters():
            part.add_(1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="free space, or save elsewhere") as error:
            agent.save(tmp_path / "agent")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "agent").iterdir()} == before
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent" / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert (tmp_path / "agent" / "notes.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_save_into_a_file_is_one_line(tmp_path):
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=1)
    agent = Reinforce(tiny.model(vocabulary=4), env, alpha=0.0, prompts_per_update=1, group_size=2)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "agent"):
        with pytest.raises(CheckpointError, match="it was not written"):
            agent.save(path)
