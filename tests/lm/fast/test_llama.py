"""Whole texts read by the layers written out, against the model's own forward pass: states and every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from rlgkd.lm import LanguageModel, linear
from rlgkd.lm.fast import attention, autograd_ops, llama
from rlgkd.lm.fast.llama import FAMILIES, read, readable
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.fused_loss import fused_sum
from rlgkd.lm.gradient_checkpointing import enable_gradient_checkpointing
from rlgkd.lm.linear import weight_gradients
from rlgkd.types import Batch, RowLayout

WORDS = [f"w{n}" for n in range(30)]
TOKENIZER = tiny.word_tokenizer(*WORDS)
PROMPTS, LENGTHS = (3, 3, 1, 6, 6, 3), (4, 9, 2, 5, 1, 7)


def batch_of(prompts=PROMPTS, lengths=LENGTHS, *, shared=True) -> Batch:
    """Rows of prompts and completions; those of equal length have the same prompt, if they are shared."""
    size = len(prompts), max(p + n for p, n in zip(prompts, lengths, strict=True))
    tokens, place = np.random.default_rng(0).integers(1, 31, size), np.arange(size[1])
    places = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        first = prompts.index(prompt) if shared else row
        tokens[row, :prompt] = tokens[first, :prompt]
        places.append(RowLayout(first, prompt, prompt + length, np.arange(prompt, prompt + length)))
    ends = np.add(prompts, lengths)[:, None]
    attention, action = place < ends, (place >= np.array(prompts)[:, None]) & (place < ends)
    return Batch(
        tokens_BT=torch.from_numpy(tokens), attention_mask_BT=torch.from_numpy(attention).long(),
        action_mask_BT=torch.from_numpy(action), logp_BT=torch.zeros(size), layouts_B=tuple(places),
    )  # fmt: skip


def family(kind: str, *, double: bool = True, **settings) -> LanguageModel:
    lm = tiny.family(kind, TOKENIZER, **settings)
    with torch.no_grad():  # biases and norms that are not those of a fresh model
        for name, parameter in lm.module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    if double:
        lm.module.double()
    return lm


def states_and_gradients(lm: LanguageModel, batch: Batch) -> dict[str, torch.Tensor]:
    """What a loss that depends on states, head and embedding makes of every parameter."""
    lm.module.zero_grad(set_to_none=True)
    states_NH, head_VH = lm.states_and_head(batch)

    def loss(logits_NV, _guide_NV, _which):
        weights_NV = torch.linspace(-1, 1, logits_NV.numel(), dtype=logits_NV.dtype).view_as(logits_NV)
        return (logits_NV.sin() * weights_NV).sum(), {}

    fused_sum(lm, states_NH, loss, head_VH=head_VH)[0].backward()
    return {"states": states_NH.detach()} | {
        name: p.grad.clone() for name, p in lm.module.named_parameters() if p.grad is not None
    }


def both_ways(lm: LanguageModel, batch: Batch, monkeypatch) -> tuple[dict[str, torch.Tensor], ...]:
    with monkeypatch.context() as patch:
        patch.setattr(llama, "readable", llama.known)  # in double precision too
        ours = states_and_gradients(lm, batch)
        patch.setattr(llama, "readable", lambda body: False)
        return ours, states_and_gradients(lm, batch)


def check_same(ours, theirs, rtol=1e-4, atol=2e-5) -> None:
    """Up to float32: transformers' norms compute in it, whatever the model's precision."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].layout == torch.strided and torch.isfinite(ours[name]).all()
        torch.testing.assert_close(
            ours[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("broadcast", [1, 64])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_states_and_gradients_are_those_of_the_models_own_pass(kind, shared, broadcast, monkeypatch):
    monkeypatch.setattr(llama, "BROADCAST", broadcast)
    assert readable(family(kind, double=False).body)
    check_same(*both_ways(family(kind), batch_of(shared=shared), monkeypatch))


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": True, "pad_token_id": 5},
        {"pad_token_id": 5},
        {"attention_bias": True, "mlp_bias": True},
        {},
    ],
)
def test_tied_heads_biases_and_a_batch_without_padding(settings, monkeypatch):
    lm = family("llama", **settings)
    check_same(*both_ways(lm, batch_of(), monkeypatch))
    check_same(*both_ways(lm, batch_of((2, 2, 2), (3, 3, 3), shared=False), monkeypatch))


def test_a_tied_embedding_has_its_gradient_where_the_head_has_none():
    lm, batch = family("llama", double=False, tie_word_embeddings=True), batch_of()
    lm.states(batch).sum().backward()
    assert lm.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [0, 1])
def test_models_of_hardly_any_layers(layers, monkeypatch):
    check_same(*both_ways(LanguageModel(tiny.model(vocabulary=31, layers=layers), TOKENIZER), batch_of(), monkeypatch))


def test_long_rows_by_torchs_kernel(monkeypatch):
    monkeypatch.setattr(attention, "SHORT", 4)
    for shared in (True, False):
        check_same(*both_ways(family("qwen3"), batch_of(shared=shared), monkeypatch))


def test_attention_of_some_rows_and_places_at_a_time(monkeypatch):
    for scores, places in ((1, 32), (300, 3), (1, 1), (2**18, 2)):
        monkeypatch.setattr(attention, "SCORES", scores)
        monkeypatch.setattr(attention, "PLACES", places)
        for shared in (True, False):
            check_same(*both_ways(family("llama"), batch_of(shared=shared), monkeypatch))
        # Nothing is asked of the first places.
        check_same(*both_ways(family("llama"), batch_of((5, 3, 6), (9, 4, 2), shared=False), monkeypatch))


def test_rows_of_which_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(attention, "SCORES", 1)  # each row for itself
    lm, tokens_BT = family("llama"), torch.arange(1, 28).view(3, 9)
    there_BT = torch.arange(9) < torch.tensor([[9], [2], [7]])
    texts = PackedTokens.padded(tokens_BT, there_BT, torch.float64)
    wanted_M = texts.number(torch.tensor([8, 5, 18 + 4]))  # of the first and the last row
    found, gradients = [], []
    for places in (attention.PLACES, 2):
        monkeypatch.setattr(attention, "PLACES", places)
        lm.module.zero_grad(set_to_none=True)
        states_MH = read(lm.body, texts, wanted_M)[0]
        states_MH.sin().sum().backward()
        found.append(states_MH.detach())
        gradients.append(lm.body.layers[0].self_attn.k_proj.weight.grad)
    with torch.no_grad():
        plain = lm.body(input_ids=tokens_BT, attention_mask=there_BT.long()).last_hidden_state
    for states_MH in found:
        torch.testing.assert_close(states_MH, plain.flatten(0, 1)[[8, 5, 22]], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(*gradients)


def test_in_single_precision_with_the_products_of_onednn(monkeypatch):
    lm = family("qwen2", double=False)
    check_same(*both_ways(lm, batch_of(), monkeypatch), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(linear, "WIDE", 1)
    check_same(*both_ways(lm, batch_of(), monkeypatch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_gradients_of_frozen_parts_are_not_formed(kind, monkeypatch):
    lm = family(kind)
    for name, parameter in lm.module.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name or "layers.0.self_attn.q_proj" in name)
    formed: list[int] = []
    monkeypatch.setattr(
        autograd_ops, "weight_gradients", lambda upstreams, x: [formed.append(1), weight_gradients(upstreams, x)][1]
    )
    check_same(*both_ways(lm, batch_of(), monkeypatch))
    assert len(formed) == 3  # of queries, keys and values; of gate and up; of down


def test_layers_computed_anew(monkeypatch):
    lm, batch = family("llama", double=False), batch_of()
    kept = states_and_gradients(lm, batch)
    enable_gradient_checkpointing(lm.module)
    runs: list[int] = []
    run = llama._layer
    monkeypatch.setattr(llama, "_layer", lambda *given: (runs.append(1), run(*given))[1])
    again = states_and_gradients(lm, batch)
    assert len(runs) == 2 * len(lm.body.layers)
    check_same(again, kept, rtol=0, atol=0)


def test_what_is_kept_for_the_gradient_does_not_grow_with_padding():
    lm = family("llama", double=False)
    kept: list[torch.Tensor] = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    one_long = batch_of((2,) * 6, (40, 1, 1, 1, 1, 1), shared=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lm.states(one_long)
    tokens, places = int(one_long.attention_mask_BT.sum()), one_long.tokens_BT.numel()
    found = [t for t in kept if not isinstance(t, torch.nn.Parameter)]
    most = max(t.shape[0] for t in found if t.dim())
    assert tokens < places / 3 and tokens <= most < 1.07 * tokens  # rounded up (rlgkd.lm.fast.packed)


def test_numbers_of_tokens_are_few():
    sizes = set()
    for longest in range(64, 128):
        there_RT = torch.arange(128) < torch.tensor([[longest], [40]])
        texts = PackedTokens.padded(torch.zeros(2, 128, dtype=torch.long), there_RT, torch.float32)
        tokens = int(there_RT.sum())
        assert tokens <= len(texts.place_N) < 1.04 * tokens
        assert set(there_RT.flatten().nonzero()[:, 0].tolist()) <= set(texts.place_N.tolist())
        sizes.add(len(texts.place_N))
    assert len(sizes) <= 24
    whole = PackedTokens.padded(torch.zeros(3, 37, dtype=torch.long), torch.ones(3, 37), torch.float32)
    assert len(whole.place_N) == 111  # no padding is made where there is none


@pytest.mark.parametrize("kind", ["gpt2", "changed", "autocast", "bfloat16", "double", "window"])
def test_others_are_read_by_their_own_pass(kind):
    lm = tiny.family(
        "gpt2" if kind == "gpt2" else "mistral", TOKENIZER, **({"sliding_window": 4} if kind == "window" else {})
    )
    if kind == "changed":
        lm.body.layers[0].mlp.up_proj = torch.nn.Sequential(lm.body.layers[0].mlp.up_proj)
    if kind in ("bfloat16", "double"):
        lm.module.to(getattr(torch, kind))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        assert not readable(lm.body)


def test_keys_and_values_are_those_of_a_cache():
    lm = family("qwen3")
    tokens_BT = torch.from_numpy(np.random.default_rng(0).integers(1, 31, (3, 5)))
    texts = PackedTokens.padded(tokens_BT, torch.ones_like(tokens_BT), torch.float64)
    found = []
    with torch.no_grad():
        read(lm.body, texts, torch.tensor([4, 9]), on_layer=lambda key, value: found.append((key, value)))
        cache = lm.body(input_ids=tokens_BT, use_cache=True).past_key_values
    assert len(found) == len(cache.layers)
    for (key, value), layer in zip(found, cache.layers, strict=True):
        for ours, theirs in ((key, layer.keys), (value, layer.values)):
            torch.testing.assert_close(ours.view(3, 5, *ours.shape[1:]).transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)


def test_attention_takes_any_strides_and_what_is_not_finite_stays_in_its_row():
    there_RT = torch.arange(6) < torch.tensor([[6], [4]])
    texts = PackedTokens.padded(torch.zeros(2, 6, dtype=torch.long), there_RT, torch.float32)
    (asked,) = attention.Asked.of(texts, [texts.place_N], 2, 2)
    query, key, value = (torch.randn(heads, 10, 8).transpose(0, 1) for heads in (4, 2, 2))
    plain = attention.attended(*(x.contiguous() for x in (query, key, value)), texts, asked, 0.3)
    torch.testing.assert_close(attention.attended(query, key, value, texts, asked, 0.3), plain)
    value[0] = torch.inf
    bad = attention.attended(query, key, value, texts, asked, 0.3)
    torch.testing.assert_close(bad[6:], plain[6:])
    assert not bad[:6].isfinite().all()
