"""The packed forward pass against the model's own: the same states and gradients of every parameter."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache

from rlgkd.lm import LanguageModel, linear
from rlgkd.lm.decode_state import cache_argument
from rlgkd.lm.fast import PackedTokens, attention, autograd_ops, forward, llama, support, supported
from rlgkd.lm.fast.support import FAMILIES
from rlgkd.lm.fused_loss import fused_sum
from rlgkd.lm.gradient_checkpointing import enable_gradient_checkpointing
from rlgkd.lm.linear import weight_gradients
from rlgkd.lm.lora import add_adapters
from rlgkd.types import Batch, RowLayout

WORDS = [f"w{n}" for n in range(30)]
TOKENIZER = tiny.word_tokenizer(*WORDS)
PROMPTS, LENGTHS = (3, 3, 1, 6, 6, 3), (4, 9, 2, 5, 1, 7)


def batch_of(prompts=PROMPTS, lengths=LENGTHS, *, shared=True) -> Batch:
    """Rows of prompts and completions; with `shared`, prompts of one length are the same prompt."""
    size = len(prompts), max(p + n for p, n in zip(prompts, lengths, strict=True))
    tokens, column = np.random.default_rng(0).integers(1, 31, size), np.arange(size[1])
    layouts = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        first = prompts.index(prompt) if shared else row
        tokens[row, :prompt] = tokens[first, :prompt]
        layouts.append(RowLayout(first, prompt, prompt + length, np.arange(prompt, prompt + length)))
    ends = np.add(prompts, lengths)[:, None]
    attention, action = column < ends, (column >= np.array(prompts)[:, None]) & (column < ends)
    return Batch(
        tokens_BT=torch.from_numpy(tokens),
        attention_mask_BT=torch.from_numpy(attention).long(),
        action_mask_BT=torch.from_numpy(action),
        logp_BT=torch.zeros(size),
        layouts_B=tuple(layouts),
    )


def family(kind: str, *, double: bool = True, **settings) -> LanguageModel:
    lm = tiny.family(kind, TOKENIZER, **settings)
    with torch.no_grad():  # biases and norms of a new model are 0 and 1
        for name, parameter in lm.module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    if double:
        lm.module.double()
    return lm


def states_and_gradients(lm: LanguageModel, batch: Batch) -> dict[str, torch.Tensor]:
    """The states, and every parameter's gradient of a loss that depends on states, head and embedding."""
    lm.module.zero_grad(set_to_none=True)
    states_NH, head_VH = lm.states_and_head(batch)

    def loss(logits_NV, _teacher_NV, _which):
        weights_NV = torch.linspace(-1, 1, logits_NV.numel(), dtype=logits_NV.dtype).view_as(logits_NV)
        return (logits_NV.sin() * weights_NV).sum(), {}

    fused_sum(lm, states_NH, loss, head_VH=head_VH)[0].backward()
    return {"states": states_NH.detach()} | {
        name: p.grad.clone() for name, p in lm.module.named_parameters() if p.grad is not None
    }


def both_ways(lm: LanguageModel, batch: Batch, monkeypatch) -> tuple[dict[str, torch.Tensor], ...]:
    with monkeypatch.context() as patch:
        patch.setattr(support, "can_forward", support.is_llama_family)  # in double precision too
        ours = states_and_gradients(lm, batch)
        patch.setattr(support, "can_forward", lambda module: False)
        return ours, states_and_gradients(lm, batch)


def check_same(ours, theirs, rtol=1e-4, atol=2e-5) -> None:
    """Equal up to float32, in which transformers' norms compute whatever the model's precision."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].layout == torch.strided and torch.isfinite(ours[name]).all()
        torch.testing.assert_close(
            ours[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("broadcast", [1, 64])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_states_and_gradients_equal_those_of_the_models_own_forward_pass(kind, shared, broadcast, monkeypatch):
    monkeypatch.setattr(llama, "BROADCAST_MIN_HEAD_DIM", broadcast)
    assert supported(family(kind, double=False).body, "forward")
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
def test_models_without_layers_or_with_one(layers, monkeypatch):
    check_same(*both_ways(LanguageModel(tiny.model(vocabulary=31, layers=layers), TOKENIZER), batch_of(), monkeypatch))


def test_attention_over_long_rows_uses_torchs_kernel(monkeypatch):
    monkeypatch.setattr(attention, "BLOCKED_MAX_WIDTH", 4)
    for shared in (True, False):
        check_same(*both_ways(family("qwen3"), batch_of(shared=shared), monkeypatch))


def test_attention_does_not_depend_on_its_blocks_and_chunks(monkeypatch):
    for scores, queries in ((1, 32), (300, 3), (1, 1), (2**18, 2)):
        monkeypatch.setattr(attention, "SCORES_PER_BLOCK", scores)
        monkeypatch.setattr(attention, "QUERIES_PER_CHUNK", queries)
        for shared in (True, False):
            check_same(*both_ways(family("llama"), batch_of(shared=shared), monkeypatch))
        # The first columns have no query.
        check_same(*both_ways(family("llama"), batch_of((5, 3, 6), (9, 4, 2), shared=False), monkeypatch))


def test_rows_without_a_query(monkeypatch):
    monkeypatch.setattr(attention, "SCORES_PER_BLOCK", 1)  # each row is a block
    lm, tokens_BT = family("llama"), torch.arange(1, 28).view(3, 9)
    is_token_BT = torch.arange(9) < torch.tensor([[9], [2], [7]])
    packed = PackedTokens.pack_right_padded(tokens_BT, is_token_BT, torch.float64)
    wanted_M = packed.packed_index(torch.tensor([8, 5, 18 + 4]))  # of the first and the last row
    found, gradients = [], []
    for queries in (attention.QUERIES_PER_CHUNK, 2):
        monkeypatch.setattr(attention, "QUERIES_PER_CHUNK", queries)
        lm.module.zero_grad(set_to_none=True)
        states_MH = forward(lm.body, packed, wanted_M)[0]
        states_MH.sin().sum().backward()
        found.append(states_MH.detach())
        gradients.append(lm.body.layers[0].self_attn.k_proj.weight.grad)
    with torch.no_grad():
        plain = lm.body(input_ids=tokens_BT, attention_mask=is_token_BT.long()).last_hidden_state
    for states_MH in found:
        torch.testing.assert_close(states_MH, plain.flatten(0, 1)[[8, 5, 22]], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(*gradients)


def test_single_precision_with_onednn(monkeypatch):
    lm = family("qwen2", double=False)
    check_same(*both_ways(lm, batch_of(), monkeypatch), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)
    check_same(*both_ways(lm, batch_of(), monkeypatch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_no_gradient_is_computed_for_frozen_weights(kind, monkeypatch):
    lm = family(kind)
    for name, parameter in lm.module.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name or "layers.0.self_attn.q_proj" in name)
    formed: list[int] = []

    def counted(upstreams, x):
        formed.append(1)
        return weight_gradients(upstreams, x)

    monkeypatch.setattr(autograd_ops, "weight_gradients", counted)
    check_same(*both_ways(lm, batch_of(), monkeypatch))
    assert len(formed) == 4  # of queries, of gate and up, of down


def adapters(lm: LanguageModel, rank: int = 3) -> None:
    """Give the model adapters away from their start, at which they add nothing."""
    dtype = lm.module.dtype
    add_adapters(lm.module, rank)
    for name, parameter in lm.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    lm.module.to(dtype)


@pytest.mark.parametrize("how", ["one", "two", "off", "merged", "of some layers", "checkpointed"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_adapters_have_the_states_and_gradients_that_they_have_in_peft(kind, how, monkeypatch):
    lm = family(kind, **({"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}))
    torch.manual_seed(0)  # peft draws adapters from the global generator
    if how == "of some layers":
        lm.module.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        lm.module.eval().double()
    else:
        adapters(lm)
    layers = [part for part in lm.module.modules() if isinstance(part, LoraLayer)]
    if how == "two":
        for part in layers:
            part.update_layer("other", 2, lora_alpha=5, config=LoraConfig(r=2, init_lora_weights=False))
            part.set_adapter(["default", "other"])
        lm.module.eval().double()
    for part in layers:
        if how == "off":
            part.enable_adapters(False)
        if how == "merged":
            part.merge()
    if how == "checkpointed":
        enable_gradient_checkpointing(lm.module)
    if how in ("off", "merged"):  # a loss needs something to learn
        lm.module.get_input_embeddings().weight.requires_grad_(True)
    ours, theirs = both_ways(lm, batch_of(), monkeypatch)
    assert any("lora_" in name for name in ours) == (how not in ("off", "merged"))
    check_same(ours, theirs)


def test_adapters_in_single_precision_with_onednn_keep_no_more_than_their_inputs(monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)
    lm, plain = (family("llama", double=False) for _ in range(2))
    adapters(lm)
    check_same(*both_ways(lm, batch_of(), monkeypatch), rtol=1e-3, atol=1e-4)

    def kept(model: LanguageModel) -> int:
        found: dict[int, int] = {}

        def keep(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.states(batch_of(PROMPTS * 8, LENGTHS * 8, shared=False))
        return sum(found.values())

    assert kept(lm) < 1.3 * kept(plain)


def test_ever_new_batches_need_few_kinds_of_products(monkeypatch):
    """oneDNN keeps half a megabyte for each shape that it has met, until the process ends."""
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)
    shapes: set[tuple[object, ...]] = set()
    call = linear._call_onednn

    def recorded(x, weight, bias, residual=None):
        shapes.add((*x.shape, *x.stride(), *weight.shape, *weight.stride()))
        return call(x, weight, bias, residual)

    monkeypatch.setattr(linear, "_call_onednn", recorded)
    lm, plain = (family("llama", double=False, tie_word_embeddings=True) for _ in range(2))
    adapters(lm)
    random = np.random.default_rng(0)
    for model in (lm, plain):
        shapes.clear()
        after = []
        for _ in range(40):
            lengths = random.integers(3, 9, 40)
            states_and_gradients(model, batch_of((7,) * 40, tuple(lengths.tolist()), shared=False))
            after.append(len(shapes))
        assert after[-1] < 6 * after[0]


def test_checkpointed_layers_run_twice_and_give_the_same_gradients(monkeypatch):
    lm, batch = family("llama", double=False), batch_of()
    kept = states_and_gradients(lm, batch)
    enable_gradient_checkpointing(lm.module)
    runs: list[int] = []
    layer_forward = llama._layer_forward

    def counted(*inputs):
        runs.append(1)
        return layer_forward(*inputs)

    monkeypatch.setattr(llama, "_layer_forward", counted)
    again = states_and_gradients(lm, batch)
    assert len(runs) == 2 * len(lm.body.layers)
    check_same(again, kept, rtol=0, atol=0)


def test_saved_activations_do_not_grow_with_padding():
    lm = family("llama", double=False)
    kept: list[torch.Tensor] = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    one_long = batch_of((2,) * 6, (40, 1, 1, 1, 1, 1), shared=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lm.states(one_long)
    tokens, padded = int(one_long.attention_mask_BT.sum()), one_long.tokens_BT.numel()
    found = [t for t in kept if not isinstance(t, torch.nn.Parameter)]
    most = max(t.shape[0] for t in found if t.dim())
    assert tokens < padded / 3 and tokens <= most < 1.07 * tokens  # rounded up (rlgkd.lm.fast.packed)


def test_on_layer_receives_the_keys_and_values_of_a_kv_cache():
    lm = family("qwen3")
    tokens_BT = torch.from_numpy(np.random.default_rng(0).integers(1, 31, (3, 5)))
    packed = PackedTokens.pack_right_padded(tokens_BT, torch.ones_like(tokens_BT), torch.float64)
    found = []
    with torch.no_grad():
        forward(lm.body, packed, torch.tensor([4, 9]), on_layer=lambda key, value: found.append((key, value)))
        cache = DynamicCache(config=lm.module.config)
        lm.body(input_ids=tokens_BT, use_cache=True, **{cache_argument(lm.body): cache})
    assert len(found) == len(cache.layers)
    for (key, value), layer in zip(found, cache.layers, strict=True):
        for ours, theirs in ((key, layer.keys), (value, layer.values)):
            torch.testing.assert_close(ours.view(3, 5, *ours.shape[1:]).transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)
