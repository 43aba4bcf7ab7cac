"""LoRA in training, decoding and saving, each against weights merged by hand."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlgkd.errors import DependencyError, ModelError, SettingError
from rlgkd.lm import LanguageModel, decode, linear
from rlgkd.lm.copies import copy_sharing_frozen
from rlgkd.lm.fast import support, supported
from rlgkd.lm.fast.support import FAMILIES
from rlgkd.lm.lora import add_adapters, check_adapters, merged_state_dict
from rlgkd.lm.saving import save

TOKENIZER = tiny.word_tokenizer(*[f"w{n}" for n in range(30)])
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
OTHERS = ("gemma", "gpt2", "gpt_neox")


def adapted(kind: str, *, moved: bool = True) -> LanguageModel:
    """A model with adapters, `moved` from their start, at which they add nothing."""
    lm = tiny.family(kind, TOKENIZER) if kind != "t5" else LanguageModel.__new__(LanguageModel)
    if kind == "t5":
        lm.module = tiny.model("t5", vocabulary=31)
    add_adapters(lm.module, 3)
    if moved:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in lm.module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.2, generator=generator)
    return lm


def logits(module) -> torch.Tensor:
    inputs = {"decoder_input_ids": IDS} if module.config.is_encoder_decoder else {}
    with torch.no_grad():
        return module(input_ids=IDS, **inputs).logits


@pytest.mark.parametrize("kind", [*FAMILIES, *OTHERS])
def test_only_adapters_train_on_all_linear_layers_but_the_head_and_add_nothing_at_first(kind):
    plain = tiny.family(kind, TOKENIZER)
    lm = adapted(kind, moved=False)
    torch.testing.assert_close(logits(lm.module), logits(plain.module), rtol=0, atol=0)
    assert all(p.requires_grad == (".lora_" in name) for name, p in lm.module.named_parameters())
    linears = [part for part in plain.body.modules() if type(part).__name__ in ("Linear", "Conv1D")]
    assert len(linears) == sum(isinstance(part, LoraLayer) for part in lm.module.modules()) > 0
    assert not isinstance(lm.module.get_output_embeddings(), LoraLayer)


def test_the_scale_is_alpha_over_rank_and_2_by_default():
    for alpha, scale in ((None, 2.0), (3, 0.5)):
        module = tiny.model(vocabulary=31)
        add_adapters(module, 6, alpha=alpha)
        part = module.model.layers[0].self_attn.q_proj
        assert part.scaling == {"default": scale} and part.lora_A["default"].weight.shape == (6, 16)


def test_the_start_depends_on_the_seed_and_no_global_generator_is_touched():
    def start(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        state, module = torch.get_rng_state(), tiny.model(vocabulary=31)
        add_adapters(module, 3, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return module.model.layers[0].mlp.up_proj.lora_A["default"].weight

    assert torch.equal(start(1, before=0), start(1, before=7))
    assert not torch.equal(start(1, before=0), start(2, before=0))


def both_ways(lm: LanguageModel, monkeypatch) -> tuple[list[list[int]], list[list[int]]]:
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5]]
    settings = {"uniforms_BT": np.random.default_rng(1).random((12, 20)), "max_new_tokens": 20, "group": 4}
    assert supported(lm.module, "decode")
    fast = decode(lm, prompts, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(support, "can_decode", lambda module: False)
        plain = decode(lm, prompts, **settings)
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=2e-5)
    assert [c.ids for c in fast] == [c.ids for c in plain]
    return [c.ids for c in fast]


@pytest.mark.parametrize("prepacked", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_llama_decoder_merges_adapters_unless_they_are_off(kind, prepacked, monkeypatch):
    monkeypatch.setattr(linear, "PREPACK_MIN_WEIGHTS", 1 if prepacked else linear.PREPACK_MIN_WEIGHTS)
    lm = adapted(kind)
    on = both_ways(lm, monkeypatch)
    for part in lm.module.modules():
        if isinstance(part, LoraLayer):
            part.enable_adapters(False)
    off = both_ways(lm, monkeypatch)
    assert on != off == both_ways(tiny.family(kind, TOKENIZER), monkeypatch)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", *OTHERS, "t5"])
def test_a_saved_model_is_merged_and_the_live_one_is_unchanged(kind, tmp_path):
    module = adapted(kind).module
    before, out = {name: value.clone() for name, value in module.state_dict().items()}, logits(module)
    save(module, TOKENIZER, tmp_path)
    opener = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    opened, report = opener.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(logits(opened), out, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name in opened.state_dict())
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.testing.assert_close(logits(module), out, rtol=0, atol=0)


def test_a_merged_weight_is_the_base_and_the_scaled_product():
    module = adapted("llama").module
    part = module.model.layers[1].mlp.down_proj
    a, b = part.lora_A["default"].weight, part.lora_B["default"].weight
    expected = part.base_layer.weight + 2.0 * b @ a
    torch.testing.assert_close(merged_state_dict(module)["model.layers.1.mlp.down_proj.weight"], expected.detach())
    assert merged_state_dict(tiny.model(vocabulary=31)) is None


def test_adapters_that_a_model_came_with_are_merged_in_decoding_and_saving(monkeypatch, tmp_path):
    lm = tiny.family("llama", TOKENIZER)
    lm.module.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lm.module.eval()
    check_adapters(lm.module)
    both_ways(lm, monkeypatch)
    save(lm.module, TOKENIZER, tmp_path)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(lm.module), rtol=1e-4, atol=1e-4
    )
    assert lm.module._hf_peft_config_loaded


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_adapters_that_are_no_sum_of_weights_are_refused_and_not_supported(variant):
    module = tiny.model("qwen2", vocabulary=31)
    module.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], **variant))
    with pytest.raises(ModelError, match="without DoRA"):
        check_adapters(module)
    assert not supported(LanguageModel(module, TOKENIZER).module, "decode")


def test_a_copy_shares_frozen_parameters_and_nothing_else():
    module = tiny.model(vocabulary=31)
    module.model.requires_grad_(False)
    other = copy_sharing_frozen(module)
    shared = {name: p is q for (name, p), q in zip(module.named_parameters(), other.parameters(), strict=True)}
    assert shared == {name: name.startswith("model.") for name in shared} and len(set(shared.values())) == 2
    add_adapters(module, 2)
    assert not any(isinstance(part, LoraLayer) for part in other.modules())


def test_a_rank_above_that_of_all_matrices_is_refused_before_memory_is_taken():
    module = tiny.model(vocabulary=4)
    with pytest.raises(SettingError, match=r"lora_rank: 17 .* above 16; give less, or 0"):
        add_adapters(module, 17)
    add_adapters(module, 16)  # nothing was added before


def test_a_second_set_of_adapters_is_refused():
    module = adapted("llama").module
    with pytest.raises(SettingError, match="lora_rank: 2 does not work; the model has adapters already"):
        add_adapters(module, 2)


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r"lora_rank: 4 does not work; .*pip install 'rlgkd\[lora\]'"):
        add_adapters(copy.deepcopy(tiny.model(vocabulary=31)), 4)


MIXTURES = {
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 6},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 8,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_adapters_reach_experts_train_decode_and_merge(kind, tmp_path, caplog):
    lm = tiny.family(kind, TOKENIZER, layer_types=["full_attention"] * 2, **MIXTURES[kind])
    module, plain = lm.module, logits(lm.module)
    experts = {n for n, p in module.named_parameters() if p.ndim == 3}
    total = sum(p.numel() for p in module.parameters())
    add_adapters(module, 2)
    torch.testing.assert_close(logits(module), plain, rtol=0, atol=1e-6)
    assert f"of the model's {total:,}" in caplog.text and "embed_tokens 496" in caplog.text
    assert experts <= set(merged_state_dict(module))
    module(input_ids=IDS).logits.pow(2).sum().backward()
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert any(".experts." in n and p.grad is not None and p.grad.abs().max() > 0 for n, p in trained.items())
    generator = torch.Generator().manual_seed(5)
    for parameter in trained.values():
        parameter.data.normal_(0, 0.2, generator=generator)
    live = logits(module)
    assert not torch.allclose(live, plain, atol=0.1)
    adapted_lm = LanguageModel(module, TOKENIZER)  # decoding is checked against the whole forward pass
    assert decode(adapted_lm, [[3, 1]], uniforms_BT=np.full((1, 4), 0.5), max_new_tokens=4)
    save(module, TOKENIZER, tmp_path, adapters=True)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), live, rtol=1e-3, atol=1e-3)


def test_what_lora_reaches_is_counted(caplog):
    module = tiny.model(vocabulary=31)
    reached = sum(p.numel() for n, p in module.named_parameters() if n.endswith("_proj.weight"))
    total = sum(p.numel() for p in module.parameters())
    add_adapters(module, 3)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert f"LoRA trains {trained:,} weights, which reach {reached:,} of the model's {total:,}" in caplog.text
    assert "lm_head 496" in caplog.text and "embed_tokens 496" in caplog.text
