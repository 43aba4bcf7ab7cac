"""Damage in a model's folder that transformers passes over is refused, or reported."""

from __future__ import annotations

import json

import chat_models
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rlgkd.agents import PPO
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import CheckpointError, ModelError
from rlgkd.lm import load, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    own = chat_models.tokenizer()
    chat_models.folder(chat_models.model(own), own, tmp_path / "model")
    return tmp_path / "model"


def refusal(action) -> str:
    with pytest.raises((ModelError, CheckpointError)) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", "null", ""])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_configuration_that_cannot_be_read_is_refused(folder, name, content):
    """transformers goes on without a damaged generation_config.json, and so without its end ids."""
    (folder / name).write_text(content)
    assert name in refusal(lambda: load(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder):
    """AutoTokenizer makes an empty one."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "holds no tokenizer" in refusal(lambda: load_tokenizer(folder))


def test_weights_in_whole_numbers_are_refused_without_a_scheme(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: part.to(torch.int8) for name, part in weights.items()}, folder / "model.safetensors")
    assert "whole numbers" in refusal(lambda: load(folder))


def test_weights_that_are_not_used_are_told(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    load(folder)
    assert "weights in its files are not used" in caplog.text and "layers.1" in caplog.text


def test_a_classifier_is_no_language_model():
    """transformers would open it as one, and leave its head out."""
    assert "writes no texts" in refusal(lambda: load("embedded:grounded-nli"))


def test_a_model_without_weights_is_refused():
    assert "meta device" in refusal(lambda: load(tiny.model(vocabulary=4).to("meta")))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_whose_weights_are_anothers_is_refused(folder, tmp_path):
    """peft only warns, and trains on as if it had been there."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load(folder), lora).save_pretrained(tmp_path / "adapter")
    assert load(tmp_path / "adapter") is not None
    save_file({"other": torch.ones(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "lacks 4 weights" in refusal(lambda: load(tmp_path / "adapter"))


@pytest.mark.parametrize("value", [torch.full((1, 16), torch.nan), torch.ones(1, 3)])
def test_a_value_head_that_is_none_is_refused(tmp_path, value):
    env = TextVecEnv(tiny.WordTask(tiny.word_tokenizer("A", "B", "C"), lambda text: 0.0), num_envs=1)
    PPO(tiny.model(vocabulary=4), env, alpha=0.0, prompts_per_update=1).save(tmp_path / "agent")
    file = tmp_path / "agent" / "value.safetensors"
    save_file({**load_file(file), "weight": value}, file)
    assert "value.safetensors" in refusal(lambda: PPO.load(tmp_path / "agent", env))
