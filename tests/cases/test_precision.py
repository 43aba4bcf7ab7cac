"""A loaded model that is given to an agent keeps its precision."""

from __future__ import annotations

import pytest
import tiny
import torch

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import SettingError
from rlgkd.lm import load, save

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


@pytest.mark.parametrize("given", ["module", "folder"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_bfloat16_teacher_stays_so_when_asked_and_gives_its_own_probabilities(tmp_path, given, dtype, caplog):
    teacher = half(1)
    if given == "folder":
        save(teacher, TOKENIZER, tmp_path)
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0, prompts=("A", "C")), num_envs=2)
    named = str(tmp_path) if given == "folder" else teacher
    agent = Distill(tiny.model(vocabulary=4), env, teacher=named, teacher_dtype=dtype, **FEW).learn(4)
    assert agent.teacher is not None and agent.student.module.dtype == torch.float32
    assert {p.dtype for p in agent.teacher.module.parameters()} == {torch.bfloat16}
    assert (agent.teacher.module is teacher) == (given == "module")
    assert "a copy of it" not in caplog.text
    for trajectory in agent.trajectories:
        tokens_1T = torch.as_tensor(trajectory.tokens_T)[None].long()
        with torch.no_grad():
            ours_TV = agent.teacher.logits(agent.teacher.body(tokens_1T).last_hidden_state)
            plain_TV = teacher(tokens_1T).logits.float()
        torch.testing.assert_close(ours_TV, plain_TV, rtol=0.02, atol=0.02)


def test_rotary_frequencies_stay_in_float32_when_weights_are_cast():
    model = tiny.model(vocabulary=4)
    assert load(model, dtype=torch.bfloat16).model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.dtype == torch.float32


def test_adapters_of_a_bfloat16_student_train_in_float32_and_move_it():
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B"))), num_envs=2)
    agent = Reinforce(half(), env, alpha=0.0, dtype="bfloat16", lora_rank=2, **FEW)
    before = weights(agent.student.module)
    agent.learn(30)
    parameters = dict(agent.student.module.named_parameters())
    assert all(p.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16) for name, p in parameters.items())
    moved = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    assert moved and all(".lora_" in name for name in moved)


def test_a_bfloat16_student_trains_and_its_float32_twin_is_its_teacher():
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B"))), num_envs=2)
    model = half()
    agent = PPO(model, env, teacher=model, alpha=0.5, dtype="bfloat16", learning_rate=0.01, **FEW).learn(8)
    assert agent.student.module is model and agent.teacher is not None and agent.teacher.module is not model
    assert agent.student.module.dtype == torch.bfloat16 and agent.teacher.module.dtype == torch.float32
    assert not agent.teacher.module.lm_head.weight.requires_grad and model.lm_head.weight.requires_grad


def test_an_averaged_teacher_must_have_the_students_precision():
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=2)
    with pytest.raises(SettingError, match="set teacher_dtype to that of dtype"):
        Distill(half(), env, teacher=half(), teacher_decay=0.9, teacher_dtype="bfloat16")
