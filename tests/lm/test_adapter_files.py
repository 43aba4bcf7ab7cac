"""LoRA adapters that one has, as a PeftModel or a folder, given as student and as teacher; and those that are saved."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlgkd.agents import PPO, Distill, Reinforce
from rlgkd.envs import TeacherReward
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import load, load_tokenizer, open_by_name
from rlgkd.lm.lora import add_adapters, is_adapter_weight
from rlgkd.lm.saving import save

# peft 0.21 asks transformers 5 for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TOKENIZER = tiny.word_tokenizer("A", "B", "C")
IDS = torch.tensor([[1, 2, 3, 1]])
FEW = {"prompts_per_update": 1, "group_size": 2}


def environment() -> TextVecEnv:
    return TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B"))), num_envs=2)


def adapted(seed: int = 0, *, name: str = "") -> PeftModel:
    model = tiny.model(vocabulary=4, seed=seed)
    model.name_or_path = name  # from which peft takes it
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS).logits


@pytest.fixture
def folders(tmp_path):
    """A base model's folder, the folder of an adapter on it, and what the adapted model computes."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save(tiny.model(vocabulary=4), TOKENIZER, base)
    model = adapted(name=str(base)).eval()
    model.save_pretrained(adapter)
    return base, adapter, logits(model)


def test_a_folder_of_an_adapter_opens_as_the_adapted_model_and_as_the_merged_one(folders):
    base, adapter, expected = folders
    live, merged = load(adapter), load(adapter, merge_adapters=True)
    for module in (live, merged, open_by_name(str(adapter)).module):
        torch.testing.assert_close(logits(module), expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad == is_adapter_weight(name) for name, p in live.named_parameters())
    assert not any(is_adapter_weight(name) for name, _ in merged.named_parameters())
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(base).get_vocab()


def test_a_student_goes_on_from_an_adapter_and_a_teacher_is_the_merged_model(folders):
    _, adapter, expected = folders
    agent = Reinforce(str(adapter), environment(), teacher=str(adapter), alpha=0.5, learning_rate=0.1, **FEW)
    assert agent.teacher is not None
    torch.testing.assert_close(logits(agent.teacher.module), expected, rtol=1e-5, atol=1e-5)
    frozen = {n: p.clone() for n, p in agent.student.module.named_parameters() if not is_adapter_weight(n)}
    agent.learn(64)
    parameters = dict(agent.student.module.named_parameters())
    assert frozen and all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert not torch.allclose(logits(agent.student.module), expected, atol=1e-6)
    torch.testing.assert_close(logits(agent.teacher.module), expected, rtol=1e-5, atol=1e-5)


def test_a_peft_model_is_student_and_teacher(tmp_path):
    student, teacher = adapted(0), adapted(1)
    expected, base = logits(teacher), {n: p.clone() for n, p in student.named_parameters() if not is_adapter_weight(n)}
    agent = Distill(student, environment(), teacher=teacher, **FEW).learn(8)
    assert agent.teacher is not None
    torch.testing.assert_close(logits(agent.teacher.module), expected)
    assert all(torch.equal(value, dict(student.named_parameters())[name]) for name, value in base.items())
    agent.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(saved), logits(student), rtol=1e-4, atol=1e-4)


def test_a_peft_model_that_is_its_own_teacher_stays_where_it_began():
    model = adapted()
    expected = logits(model)
    agent = PPO(model, environment(), teacher=model, alpha=0.5, learning_rate=0.1, **FEW).learn(64)
    assert agent.teacher is not None
    torch.testing.assert_close(logits(agent.teacher.module), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(agent.student.module), expected, atol=1e-3)


def test_the_saved_adapter_opens_in_peft_and_here_as_the_trained_model(tmp_path):
    save(tiny.model(vocabulary=4), TOKENIZER, tmp_path / "base")
    base = str(tmp_path / "base")
    agent = Reinforce(base, environment(), alpha=0.0, lora_rank=2, save_adapter=True, learning_rate=0.1, **FEW)
    agent.learn(16).save(tmp_path / "agent")
    adapter = tmp_path / "agent" / "adapter"
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    for module in (theirs, load(adapter), load(tmp_path / "agent")):
        torch.testing.assert_close(logits(module), logits(agent.student.module), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(theirs), logits(load(base)), atol=1e-3)
    Reinforce(str(adapter), environment(), alpha=0.0, **FEW).learn(4)


def test_what_is_saved_into_the_adapters_own_folder_opens_as_the_trained_model(folders, caplog):
    base, adapter, before = folders
    agent = Reinforce(str(adapter), environment(), alpha=0.0, learning_rate=0.1, save_adapter=True, **FEW).learn(16)
    trained = logits(agent.student.module)
    assert not torch.allclose(trained, before, atol=1e-3)
    for _ in range(2):  # the second time over the folder `adapter` that the first wrote
        agent.save(adapter)
        for opened in (load(adapter), AutoModelForCausalLM.from_pretrained(adapter), load(adapter / "adapter")):
            torch.testing.assert_close(logits(opened.eval()), trained, rtol=1e-4, atol=1e-4)
    assert f"{adapter} held an adapter" in caplog.text
    with pytest.raises(SettingError, match=r"path: .*base.* it holds the model that the adapter is on; save elsewhere"):
        agent.save(base)
    torch.testing.assert_close(logits(load(base)), logits(tiny.model(vocabulary=4)), rtol=0, atol=0)


def test_an_adapter_on_an_embedded_model_names_it_as_it_was_given(tmp_path):
    name = "embedded:translate-student"
    module, tokenizer = load(name), load_tokenizer(name)
    add_adapters(module, 2)
    with torch.no_grad():
        for part, parameter in module.named_parameters():
            if is_adapter_weight(part):
                parameter.fill_(0.1)
    save(module, tokenizer, tmp_path, adapters=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name
    torch.testing.assert_close(logits(load(tmp_path / "adapter")), logits(module), rtol=0, atol=0)


@pytest.mark.parametrize("save_adapter", [False, True])
def test_a_loaded_agent_whose_adapter_was_merged_says_that_it_trains_all_weights(
    folders, tmp_path, caplog, save_adapter
):
    _, adapter, expected = folders
    agent = Reinforce(str(adapter), environment(), alpha=0.0, save_adapter=save_adapter, **FEW)
    agent.save(tmp_path / "agent")
    assert "is merged" not in caplog.text
    again = Reinforce.load(tmp_path / "agent", env=environment())
    assert caplog.text.count("is merged, and all weights are trained") == 1
    assert all(p.requires_grad for p in again.student.module.parameters())
    torch.testing.assert_close(logits(again.student.module), expected, rtol=1e-5, atol=1e-5)
    again.learn(4).save(tmp_path / "again")
    caplog.clear()
    Reinforce.load(tmp_path / "again", env=environment())  # of an agent that had no adapter any more
    Reinforce.load(tmp_path / "agent", env=environment(), lora_rank=2)
    assert "is merged" not in caplog.text
    if save_adapter:
        going_on = Reinforce.load(tmp_path / "agent", env=environment(), policy=str(tmp_path / "agent" / "adapter"))
        torch.testing.assert_close(logits(going_on.student.module), expected, rtol=1e-5, atol=1e-5)
        assert not all(p.requires_grad for p in going_on.student.module.parameters())


@pytest.mark.parametrize("wrong", [3, {"a": 1}, torch.nn.Linear(2, 2), "x" * 5000])
def test_what_is_no_model_is_refused_in_one_short_line_wherever_a_model_is_given(wrong):
    env = environment()
    for build in (
        lambda: load(wrong),
        lambda: load_tokenizer(wrong),
        lambda: Reinforce(wrong, env, alpha=0.0),
        lambda: Reinforce(tiny.model(vocabulary=4), env, tokenizer=TOKENIZER, teacher=wrong),
        lambda: TeacherReward(
            TextGenerationEnv(prompts=["A"], reward=lambda completions: [0.0], tokenizer=TOKENIZER),
            teacher=wrong,
            alpha=0.5,
        ),
    ):
        with pytest.raises(ModelError) as caught:
            build()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < (5500 if isinstance(wrong, str) else 200)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["q_proj"], use_dora=True),
    ],
    ids=["prompts", "IA3", "whole modules", "DoRA"],
)
def test_other_adapters_than_plain_lora_are_refused(config):
    model = get_peft_model(tiny.model(vocabulary=4), config)
    with pytest.raises(ModelError, match=r"student: .*plain LoRA"):
        Reinforce(model, environment(), alpha=0.0)


def test_damaged_adapter_folders_name_what_is_missing(folders):
    _, adapter, _ = folders
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="save the adapter as safetensors"):
        load(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no model in base_model_name_or_path"):
        load(adapter)


def test_save_adapter_without_an_adapter_is_refused_at_the_start():
    with pytest.raises(SettingError, match=r"save_adapter: .*set lora_rank"):
        Reinforce(tiny.model(vocabulary=4), environment(), alpha=0.0, save_adapter=True)
