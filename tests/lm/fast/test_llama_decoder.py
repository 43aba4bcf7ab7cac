"""The Llama decoder against the model's own forward pass: the same tokens and log-probabilities."""

from __future__ import annotations

import gc
import weakref

import graphs
import numpy as np
import pytest
import tiny
import torch

from rlgkd.lm import LanguageModel, decode, linear
from rlgkd.lm.decoders import HuggingFaceDecoder, make_decoder
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.fast import LlamaDecoder, llama_decoder, support, supported
from rlgkd.lm.fast.support import FAMILIES
from rlgkd.lm.generate import Completion, CoSampler

WORDS = [f"w{n}" for n in range(30)]
TOKENIZER = tiny.word_tokenizer(*WORDS)
NEW = 24
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 31, size=length).tolist() for length in (7, 1, 12, 3, 5, 9, 2, 16)]
EVEN = [prompt[:1] * 6 for prompt in PROMPTS]
OTHERS = ("gemma", "gpt2", "gpt_neox")


@pytest.fixture(autouse=True)
def onednn_for_small_weights(monkeypatch):
    """The models here are tiny; let oneDNN multiply by their weights as by large ones."""
    monkeypatch.setattr(linear, "PREPACK_MIN_WEIGHTS", 1)
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)


def both_ways(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, prompts=PROMPTS, **settings
) -> tuple[list[Completion], ...]:
    rows = len(prompts) * settings.get("group", 1)
    settings = {"uniforms_BT": np.random.default_rng(1).random((rows, NEW)), "max_new_tokens": NEW, **settings}
    fast = decode(lm, prompts, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(support, "can_decode", lambda module: False)
        return fast, decode(lm, prompts, **settings)


def check_same(fast: list[Completion], plain: list[Completion]) -> None:
    assert [c.ids for c in fast] == [c.ids for c in plain]
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=2e-5)
        np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=2e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS, EVEN], ids=["ragged", "even"])
def test_the_llama_decoder_generates_what_the_models_own_forward_pass_does(kind, prompts, monkeypatch):
    lm = tiny.family(kind, TOKENIZER)
    with torch.no_grad():  # biases and norms of a new model are 0 and 1
        for name, parameter in lm.module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    assert isinstance(make_decoder(lm, 8, 64), LlamaDecoder)
    fast, plain = both_ways(lm, monkeypatch, prompts, group=3)
    check_same(fast, plain)
    lengths = {len(c.ids) for c in fast}
    assert NEW in lengths and len(lengths) > 4, "no row ended early, so no slot was freed"


@pytest.mark.parametrize("rope", ["linear", "llama3", "dynamic"])
def test_rotary_embeddings_that_depend_on_the_position_alone(rope, monkeypatch):
    parameters = {"rope_type": rope, "rope_theta": 100.0, "factor": 4.0}
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    lm = tiny.family("llama", TOKENIZER, rope_parameters=parameters)
    assert supported(lm.module, "decode") == (rope != "dynamic")
    check_same(*both_ways(lm, monkeypatch))


def test_without_onednn(monkeypatch):
    lm = tiny.family("qwen2", TOKENIZER)
    prepacked = both_ways(lm, monkeypatch)[0]
    monkeypatch.setattr(linear, "has_onednn", lambda weight: False)
    check_same(both_ways(lm, monkeypatch)[0], prepacked)


def test_in_double_precision(monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER)
    lm.module.double()
    check_same(*both_ways(lm, monkeypatch))


def test_co_sampling_greedy_decoding_and_limits_for_each_row(monkeypatch):
    lm, other = tiny.family("llama", TOKENIZER), tiny.family("gpt2", TOKENIZER)
    co_sampler = CoSampler(other, lambda theirs, ours: (theirs + ours).log_softmax(-1))
    check_same(*both_ways(lm, monkeypatch, co_sampler=co_sampler))
    check_same(*both_ways(lm, monkeypatch, uniforms_BT=None))
    limits = [1, 5, NEW, 2, 9, 3, 1, 4]
    fast, plain = both_ways(lm, monkeypatch, max_new_tokens=limits)
    check_same(fast, plain)
    assert all(len(c.ids) <= limit for c, limit in zip(fast, limits, strict=True))


@pytest.mark.parametrize("kind", ["llama", *OTHERS])
@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_waiting_rows_take_the_slots_of_rows_that_have_ended(kind, at_once, monkeypatch):
    lm = tiny.family(kind, TOKENIZER)
    settings = {"group": 3, "max_new_tokens": [1 + 7 * n % NEW for n in range(3 * len(PROMPTS))]}
    all_at_once = both_ways(lm, monkeypatch, **settings)[0]
    widths: list[int] = []
    limited = tiny.family(kind, TOKENIZER, rows_at_once=at_once)
    for completions in both_ways(limited, monkeypatch, on_step=lambda n: not widths.append(n), **settings):
        check_same(completions, all_at_once)
    assert max(widths) == at_once
    assert at_once > 3 or len(widths) / 2 > max(map(len, PROMPTS)) + NEW, "the ring of columns did not wrap around"
    if at_once == 10:
        assert sum(n > 6 for n in widths) > len(widths) / 2, "the slots of rows that had ended stayed empty"


def test_an_encoder_decoder_model_adds_waiting_rows_when_all_others_have_ended():
    module = tiny.model("t5", vocabulary=31, scale=0.1)
    settings = {"uniforms_BT": np.random.default_rng(1).random((8, NEW)), "max_new_tokens": NEW}
    all_at_once = decode(language_model(module, TOKENIZER), PROMPTS, **settings)
    check_same(decode(language_model(module, TOKENIZER, rows_at_once=3), PROMPTS, **settings), all_at_once)


def test_the_steps_of_fixed_shape_that_compilation_uses(monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER, rows_at_once=5, compile_decoding=True)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    check_same(*both_ways(lm, monkeypatch, group=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_compiled_decoding(monkeypatch):
    lm = tiny.family("llama", TOKENIZER, rows_at_once=5, compile_decoding=True)
    check_same(*both_ways(lm, monkeypatch, group=2))


@pytest.mark.parametrize("precision", ["full", "mixed"])
def test_decoding_by_replayed_graphs(precision, monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER, rows_at_once=5, compile_decoding=True)
    settings = {"group": 2, "max_new_tokens": [1 + 7 * n % NEW for n in range(2 * len(PROMPTS))]}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"), monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        plain = both_ways(lm, monkeypatch, **settings)[0]
        made = graphs.on_a_cpu(patch)
        again, other = (both_ways(lm, monkeypatch, **settings)[0] for _ in range(2))
    check_same(again, plain)
    check_same(other, plain)
    assert len(made) == 2, "a graph for each decoder"
    assert all(graph.replays > NEW for graph in made)


@pytest.mark.parametrize("waits", [torch.Tensor.item, bool, lambda x: x[x > 0], torch.nonzero])
@torch.inference_mode()
def test_a_step_that_waits_for_the_device_cannot_be_a_graph(waits, monkeypatch):
    graphs.on_a_cpu(monkeypatch)

    def step(x):
        waits(x.sum())
        return x

    with pytest.raises(AssertionError, match="waits for the device"):
        llama_decoder.graphed_step(step, torch.device("cpu"))(torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled, monkeypatch):
    lm = tiny.family("llama", TOKENIZER, rows_at_once=5, compile_decoding=compiled)
    lm.module.to("cuda")
    check_same(*both_ways(lm, monkeypatch, group=2))


@pytest.mark.parametrize("kind", ["mixed", "half"])
def test_in_lower_precision(kind, monkeypatch):
    lm = tiny.family("qwen2", TOKENIZER)
    if kind == "half":
        lm.module.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "mixed"):
        fast, plain = both_ways(lm, monkeypatch, max_new_tokens=1 + NEW // 2)
    alike = [c for c, other in zip(fast, plain, strict=True) if c.ids == other.ids]
    assert len(alike) >= len(fast) - 2, "rounding alone changes few texts"
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours.logp[:1], theirs.logp[:1], atol=0.05)


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_a_decoder_and_its_weights_are_freed_without_the_garbage_collector(compiled, monkeypatch):
    lm = tiny.family("llama", TOKENIZER, compile_decoding=compiled)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    graphs.on_a_cpu(monkeypatch)
    decoder = make_decoder(lm, 2, 64)
    decoder.add_rows(PROMPTS[:2], np.arange(2))
    decoder.step(torch.tensor([1, 2]))
    freed = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert freed() is None
    finally:
        gc.enable()


def test_a_changed_weight_is_used_by_the_next_decoding(monkeypatch):
    lm = tiny.family("llama", TOKENIZER)
    before = both_ways(lm, monkeypatch)[0]
    with torch.no_grad():
        lm.body.layers[1].mlp.down_proj.weight.mul_(-1)
    fast, plain = both_ways(lm, monkeypatch)
    assert [c.ids for c in fast] != [c.ids for c in before]
    check_same(fast, plain)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_decode_with_their_own_forward_pass(kind):
    assert isinstance(make_decoder(tiny.family(kind, TOKENIZER), 8, 64), HuggingFaceDecoder)
