"""The permissions of whatever an agent saves."""

from __future__ import annotations

import os

import pytest
import tiny

from rlgkd.agents import PPO, Reinforce
from rlgkd.envs.sb3 import TextVecEnv

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
