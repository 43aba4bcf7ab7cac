"""Families of transformers, as tiny random models: decoded as their own whole forward pass says, or refused by name.

The newer ones are trained by every agent too, saved, and generate the same text in plain transformers.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlgkd.agents import GRPO, PPO, RLOO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import ModelError
from rlgkd.lm import LanguageModel, decode, language_model
from rlgkd.lm.decode_state import cache_argument

TOKENIZER = tiny.word_tokenizer(*"ABCDEFGHIJK")
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [3], [2, 2, 9]]
GROUP, NEW = 2, 8
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
RIGHT: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},  # biases by distance, without position_ids
    "falcon_h1": {**GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "gemma2": {**GROUPED, "sliding_window": 6},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": tiny.CONTEXT},
    "gpt_neox": {},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "qwen3_5_text": {**GROUPED, **LINEAR},
}
TRAINED: dict[str, dict[str, Any]] = {
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 6, "logit_scale": 0.25},
    "exaone4": {**GROUPED, "sliding_window": 6},
    "gemma3": {},  # with a vision part
    "gemma3_text": {**GROUPED, "sliding_window": 6},
    "glm4": GROUPED,
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "sliding_window": 6},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "lfm2": RIGHT["lfm2"],
    "llama4_text": {**GROUPED, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "ministral": {**GROUPED, "sliding_window": 6},
    "mistral": RIGHT["mistral"],
    "mixtral": RIGHT["mixtral"],
    "olmo3": {"sliding_window": 6},
    "phi3": {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "smollm3": GROUPED,
}
RIGHT |= TRAINED | {"falcon_h1": {**RIGHT["falcon_h1"], "lm_head_multiplier": 0.5}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rwkv": ({}, "with a cache and padding"),
    "mamba": ({"state_size": 8}, "with a cache and padding"),
    "mamba2": ({"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}, "with a cache and padding"),
    "jamba": ({"num_key_value_heads": 2, "num_experts": 2}, "ValueError"),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": tiny.CONTEXT}, "RuntimeError"),
    "hyperclovax": ({"num_key_value_heads": 2, "logits_scaling": 2.0}, "not a linear head"),
}


def module(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    shape = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": tiny.CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if kind == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = shape | GROUPED | {"sliding_window": 6}
        settings = {"vision_config": {**vision, "image_size": 8, "patch_size": 4}, "text_config": text}
        shape = {"eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | settings))).eval()


@pytest.mark.parametrize("kind", RIGHT)
def test_sampled_log_probabilities_are_those_of_plain_transformers(kind):
    lm = LanguageModel(module(kind, RIGHT[kind]), TOKENIZER)
    uniforms_BT = np.random.default_rng(0).random((len(PROMPTS) * GROUP, NEW))
    completions = decode(lm, PROMPTS, uniforms_BT=uniforms_BT, group=GROUP, max_new_tokens=NEW)
    for row, completion in enumerate(completions):
        prompt = PROMPTS[row // GROUP]
        with torch.no_grad():
            logits_TV = lm.module(torch.tensor([prompt + completion.ids]), use_cache=False).logits[0]
        logp_TV = logits_TV[len(prompt) - 1 : -1].log_softmax(-1)
        plain = logp_TV.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logp, plain.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_agent_trains_it_and_plain_transformers_generates_the_same_from_the_saved_folder(kind, tmp_path):
    texts = ("A B C", "D", "E F")
    env = TextVecEnv(
        tiny.WordTask(TOKENIZER, lambda text: float(len(text)), prompts=texts, max_new_tokens=6), num_envs=2
    )
    start = module(kind, TRAINED[kind])
    before = {name: value.clone() for name, value in start.state_dict().items()}
    for agent_class in (Reinforce, RLOO, GRPO, PPO, Distill):
        student = copy.deepcopy(start)
        mixed = {} if agent_class is Distill else {"alpha": 0.5}
        few = {"prompts_per_update": 2, "group_size": 2, "learning_rate": 0.02, "gradient_norms_every": 0}
        agent = agent_class(student, env, teacher=module(kind, TRAINED[kind]).float(), **mixed, **few)
        with torch.no_grad():  # a teacher of its own
            agent.teacher.head.weight.add_(0.1 * torch.sin(torch.arange(32.0)))
        agent.learn(1)
        moved = {name for name, value in agent.student.module.state_dict().items() if not value.equal(before[name])}
        assert any("layers.0." in name for name in moved) and not any("vision" in name for name in moved)
        agent.save(tmp_path / agent_class.__name__)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / agent_class.__name__)
        for prompt, ours in zip(texts, agent.generate(texts), strict=True):
            ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
            written = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0]
            assert TOKENIZER.decode(written[ids.shape[1] :], skip_special_tokens=True).strip() == ours


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_would_be_decoded_wrongly_is_refused_at_opening_in_one_line(kind):
    settings, reason = REFUSED[kind]
    with pytest.raises(ModelError, match=reason) as caught:
        LanguageModel(module(kind, settings), TOKENIZER)
    assert str(caught.value).startswith(f"model: {kind!r} does not work; ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "argument", ["attention_mask", "position_ids", cache_argument(tiny.model("gpt2", vocabulary=4).base_model)]
)
def test_a_model_that_ignores_what_decoding_needs_is_refused_in_either_precision(monkeypatch, argument, dtype):
    model = module("gpt2", RIGHT["gpt2"]).to(dtype)
    forward = model.base_model.forward

    def ignoring(*inputs: Any, **arguments: Any) -> Any:
        return forward(*inputs, **{name: value for name, value in arguments.items() if name != argument})

    monkeypatch.setattr(model.base_model, "forward", ignoring)
    with pytest.raises(ModelError, match="with a cache and padding"):
        LanguageModel(model, TOKENIZER)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_module_is_decoded_at_its_first_opening_alone(monkeypatch, kind):
    model = tiny.model(kind, vocabulary=len(TOKENIZER))
    language_model(model, TOKENIZER)
    monkeypatch.setattr(LanguageModel, "advance", lambda *_: pytest.fail("it was decoded again"))
    language_model(model, TOKENIZER, temperature=0.7)


def test_a_16_bit_model_with_soft_capped_logits_opens():
    LanguageModel(module("gemma2", RIGHT["gemma2"]).to(torch.bfloat16), TOKENIZER)
