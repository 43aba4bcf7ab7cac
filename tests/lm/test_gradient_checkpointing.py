"""Gradient checkpointing: the same states and gradients, with less memory."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlgkd.errors import ModelError
from rlgkd.lm import LanguageModel, decode, language_model, linear
from rlgkd.lm.gradient_checkpointing import enable_gradient_checkpointing
from rlgkd.lm.lora import add_adapters
from rlgkd.types import Batch

TOKENIZER = tiny.word_tokenizer(*[f"w{n}" for n in range(30)])
KINDS = ("llama", "gpt2", "qwen2", "gemma", "gpt_neox", "t5")
WIDTH = 40


def model(kind: str) -> LanguageModel:
    if kind == "t5":
        return language_model(tiny.model("t5", vocabulary=31, layers=4), TOKENIZER)
    return tiny.family(kind, TOKENIZER, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 4})


def batch() -> Batch:
    """Two rows of different prompts and lengths."""
    tokens_BT = torch.randint(1, 31, (2, WIDTH), generator=torch.Generator().manual_seed(3))
    attention_BT, action_BT = torch.ones(2, WIDTH, dtype=torch.long), torch.zeros(2, WIDTH, dtype=torch.bool)
    attention_BT[1, -7:] = 0
    action_BT[0, 9:], action_BT[1, 4:-7] = True, True
    return Batch(
        tokens_BT=tokens_BT, attention_mask_BT=attention_BT, action_mask_BT=action_BT, logp_BT=torch.zeros(2, WIDTH)
    )


def states_and_gradients(lm: LanguageModel) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """The batch's states and gradients, and how many bytes autograd saved for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    lm.module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states_NH = lm.states(batch())
    (states_NH * torch.linspace(-1, 1, states_NH.shape[1])).sum().backward()
    gradients = {name: p.grad.clone() for name, p in lm.module.named_parameters() if p.grad is not None}
    return states_NH.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_the_same_and_less_is_saved(kind, adapters, monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)  # as for a larger model
    plain = model(kind)
    if adapters:
        add_adapters(plain.module, 2)
    leaner = copy.deepcopy(plain)
    enable_gradient_checkpointing(leaner.module)
    states_NH, gradients, kept = states_and_gradients(plain)
    ours_NH, ours, fewer = states_and_gradients(leaner)
    torch.testing.assert_close(ours_NH, states_NH, rtol=0, atol=0)
    assert gradients and ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert fewer < kept / 2
    assert not any(part.training for part in leaner.module.modules()), "dropout would be on"


def test_dropout_stays_off_where_a_layer_itself_applies_it():
    """OPT's layers do, and transformers' own switch would turn it on."""
    config = AutoConfig.for_model(
        "opt",
        vocab_size=31,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        dropout=0.5,
        pad_token_id=0,
    )
    lm = LanguageModel(AutoModelForCausalLM.from_config(config), TOKENIZER)
    expected = states_and_gradients(lm)[0]
    enable_gradient_checkpointing(lm.module)
    torch.testing.assert_close(states_and_gradients(lm)[0], expected, rtol=0, atol=0)


def test_a_copy_uses_its_own_weights():
    lm = model("gemma")
    enable_gradient_checkpointing(lm.module)
    other = copy.deepcopy(lm)
    with torch.no_grad():
        lm.body.layers[0].mlp.up_proj.weight.zero_()
        lm.body.layers[2].mlp.up_proj.weight.zero_()
    torch.testing.assert_close(states_and_gradients(other)[0], states_and_gradients(model("gemma"))[0])
    assert not torch.allclose(states_and_gradients(lm)[0], states_and_gradients(other)[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_decoding_is_the_same(kind):
    lm, prompts = model(kind), [[3, 1, 4], [1, 5]]
    before = decode(lm, prompts, uniforms_BT=None, max_new_tokens=12)
    enable_gradient_checkpointing(lm.module)
    assert decode(lm, prompts, uniforms_BT=None, max_new_tokens=12) == before


def test_unsupported_layers_are_refused(monkeypatch):
    monkeypatch.setattr("rlgkd.lm.layers.GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(ModelError, match="leave gradient_checkpointing out"):
        enable_gradient_checkpointing(tiny.model(vocabulary=4))
