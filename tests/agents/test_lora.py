"""Students with LoRA: what trains, the free anchor, checkpoints, saved models; and layers that are computed anew."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from stable_baselines3.common.logger import Logger
from transformers import AutoModelForCausalLM

from rlgkd import checkpoint
from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.agents.state import TrainingState
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import ModelError, SettingError
from rlgkd.types import Batch

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
SMALL = {"learning_rate": 2e-2, "prompts_per_update": 8, "lora_rank": 2}
ALGORITHMS = {
    Distill: {},
    Reinforce: {"alpha": 0.3},
    GRPO: {"alpha": 0.3, "epochs": 2},
    PPO: {"alpha": 0.3, "epochs": 2},
}


def environment() -> TextVecEnv:
    return TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B"))), num_envs=2)


def student(seed: int = 0, kind: str = "llama"):
    return tiny.model(kind, vocabulary=4, seed=seed)


def rows_of(agent, timesteps: int, **more) -> list[dict[str, float]]:
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(timesteps, **more)
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows.rows]


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.tensor([[1, 2, 3]])).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_adapters_alone_learn_the_task_and_the_start_stays_beside_them_without_memory_of_its_own(kind):
    policy = student(kind=kind)
    expected = logits(policy)
    agent = Reinforce(policy, environment(), teacher=policy, alpha=0.05, **SMALL)
    base = {name: p.detach().clone() for name, p in agent.student.module.named_parameters() if not p.requires_grad}
    rows = rows_of(agent, 5000)
    assert sum(row["rollout/ep_rew_mean"] for row in rows[-3:]) / 3 > 0.9
    assert all(torch.equal(dict(agent.student.module.named_parameters())[name], value) for name, value in base.items())
    torch.testing.assert_close(logits(agent.teacher.module), expected, rtol=0, atol=0)
    assert not torch.allclose(logits(agent.student.module), expected, atol=0.1)
    ours = {p.data_ptr() for p in agent.student.module.parameters()}
    assert all(p.data_ptr() in ours for p in agent.teacher.module.parameters())
    assert rows[0]["train/divergence"] == pytest.approx(0, abs=1e-6) and rows[-1]["train/divergence"] > 0.01


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_anchor_is_worth_a_copy_of_the_start(algorithm):
    """The same curve with a teacher that was opened anew, caches and mixed sampling included."""
    settings = {**SMALL, **ALGORITHMS[algorithm]}
    if algorithm is Distill:
        settings |= {"behaviour": "teacher_mixed", "teacher_share": 0.5}
    policy = student()
    ours = rows_of(algorithm(policy, environment(), teacher=policy, **settings), 400)
    assert ours == rows_of(algorithm(student(), environment(), teacher=student(), **settings), 400)
    assert len(ours) > 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checkpoint_holds_what_trains_and_goes_on_to_the_bit(algorithm, tmp_path):
    def start():
        policy = student()
        return algorithm(policy, environment(), teacher=policy, seed=3, **{**SMALL, **ALGORITHMS[algorithm]})

    agent, other = start(), start()
    agent.learn(300)
    folder = checkpoint.save(
        tmp_path / "step-1", model=agent.modules, optimizer=agent.policy.optimizer, state=agent.state.to_json()
    )
    held = load_file(folder / "model.safetensors")
    assert held and all("lora_" in name or name.startswith("value.") for name in held)
    assert sum(value.numel() for value in held.values()) == sum(p.numel() for p in agent.modules.parameters())
    other.state = TrainingState.from_json(
        checkpoint.load(folder, model=other.modules, optimizer=other.policy.optimizer)
    )
    for some in (agent, other):
        some.learn(300, reset_num_timesteps=False)
    states = [some.student.module.state_dict() for some in (agent, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert agent.state == other.state


def test_what_is_saved_opens_without_peft_and_a_loaded_agent_begins_new_adapters_on_it(tmp_path):
    student().save_pretrained(tmp_path / "start")
    TOKENIZER.save_pretrained(tmp_path / "start")
    start = str(tmp_path / "start")
    agent = Reinforce(start, environment(), teacher=start, alpha=0.3, **SMALL).learn(300)
    agent.save(tmp_path / "agent")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "agent")
    torch.testing.assert_close(logits(opened), logits(agent.student.module), atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "agent" / "adapter_config.json").exists()
    settings = json.loads((tmp_path / "agent" / "rlgkd_agent.json").read_text())["settings"]
    assert settings["lora_rank"] == 2
    again = Reinforce.load(tmp_path / "agent", env=environment())
    torch.testing.assert_close(logits(again.student.module), logits(opened), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(again.teacher.module), logits(student()), rtol=0, atol=0)
    again.learn(300, reset_num_timesteps=False)


def test_layers_are_cut_out_of_the_start_without_a_copy():
    policy = student()
    agent = Reinforce(policy, environment(), teacher=policy, alpha=0.3, student_layers=[1], **SMALL)
    theirs = {p.data_ptr() for p in agent.teacher.module.parameters()}
    assert all(p.data_ptr() in theirs for p in agent.student.module.parameters() if not p.requires_grad)
    assert len(agent.student.body.layers) == 1 and len(agent.teacher.body.layers) == 2
    torch.testing.assert_close(logits(agent.teacher.module), logits(student()), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_loaded_start_from_which_layers_are_cut_stays_as_it_was_with_the_caller(rank):
    policy = student()
    agent = Reinforce(
        policy, environment(), teacher=policy, alpha=0.3, student_layers=[1], **{**SMALL, "lora_rank": rank}
    )
    agent.learn(32)
    assert all(p.requires_grad for p in policy.parameters())
    assert not any(p.requires_grad for p in agent.teacher.module.parameters())
    ours = {p.data_ptr() for p in policy.parameters()}
    assert all(p.data_ptr() in ours for p in agent.teacher.module.parameters()), "no memory of its own"
    torch.testing.assert_close(logits(policy), logits(student()), rtol=0, atol=0)


def test_adapters_of_ones_own_are_trained_as_they_come_and_the_start_keeps_them_as_they_were():
    policy = student()
    policy.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    expected = logits(policy.eval())
    agent = Reinforce(policy, environment(), teacher=policy, alpha=0.3, **{**SMALL, "lora_rank": 0}).learn(300)
    torch.testing.assert_close(logits(agent.teacher.module), expected, rtol=0, atol=0)
    assert not torch.allclose(logits(agent.student.module), expected)
    assert agent.teacher.module.model.embed_tokens.weight is policy.model.embed_tokens.weight
    with pytest.raises(SettingError, match="lora_rank"):
        Reinforce(policy, environment(), alpha=0.0, **SMALL)


def test_adapters_that_cannot_be_saved_are_refused_before_training():
    policy = student()
    policy.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(ModelError, match="cannot be merged"):
        Reinforce(policy, environment(), alpha=0.0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lora_rank": -1}, "lora_rank"),
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"lora_alpha": 0, "lora_rank": 4}, "lora_alpha"),
        ({"teacher_decay": 0.9, "lora_rank": 4}, "teacher_decay"),
        ({"save_adapter": True, "lora_rank": 4, "student_layers": [1]}, "save_adapter"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, field):
    policy = student()
    with pytest.raises(SettingError) as error:
        Reinforce(policy, environment(), teacher=policy, alpha=0.3, **settings)
    assert error.value.field == field
    assert not any(isinstance(part, LoraLayer) for part in policy.modules())


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradient_checkpointing_changes_no_curve(algorithm, rank):
    settings = {**SMALL, "lora_rank": rank, **ALGORITHMS[algorithm]}

    def curve(**more):
        agent = algorithm(student(), environment(), teacher=student(1), **settings, **more)
        return rows_of(agent, 300), agent

    (plain, _), (leaner, agent) = curve(), curve(gradient_checkpointing=True)
    assert len(plain) > 3
    for one, other in zip(plain, leaner, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5, nan_ok=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        agent.student.states(Batch.collate(agent.trajectories, pad=0))
    assert len(kept) < 40, "the layers keep what is inside them"
