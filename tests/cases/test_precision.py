"""A loaded model that is given to an agent keeps its precision."""

from __future__ import annotations

import pytest
import tiny
import torch

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.lm import load

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
FEW = {"prompts_per_update": 1, "group_size": 2}


def half(seed: int = 0, kind: str = "llama"):
    return tiny.model(kind, vocabulary=4, seed=seed, scale=0.1).to(torch.bfloat16)


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "build",
    [
        lambda student, teacher, env: Distill(student, env, teacher=teacher, **FEW),
        lambda student, teacher, env: PPO(student, env, teacher=teacher, teacher_decay=0.5, alpha=0.5, **FEW),
        lambda student, teacher, env: Distill(student, env, teacher=student, student_layers=[1], **FEW),
        lambda student, teacher, env: Reinforce(student, env, alpha=0.0, lora_rank=2, **FEW),
    ],
    ids=["student and teacher", "moving teacher", "cut student", "LoRA"],
)
def test_a_given_module_in_another_precision_stays_as_it_is(build, caplog):
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B"))), num_envs=2)
    student, teacher = half(0), half(1)
    before = weights(student), weights(teacher)
    agent = build(student, teacher, env).learn(4)
    assert agent.student.module.dtype == torch.float32
    assert "it stays as it is" in caplog.text
    for module, values in zip((student, teacher), before, strict=True):
        found = module.state_dict()
        assert found.keys() == values.keys()
        assert all(torch.equal(found[name], values[name]) and found[name].dtype == values[name].dtype for name in found)
        assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_given_module_in_the_precision_asked_for_is_taken_itself(caplog):
    model, t5 = half(), tiny.model("t5", vocabulary=4)
    assert load(model, dtype=torch.bfloat16) is model and load(t5) is t5
    assert not caplog.text
