"""Layers written out for one token against the model's own forward pass: the same tokens and log-probabilities."""

from __future__ import annotations

import gc
import weakref

import graphs
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from rlgkd.lm import LanguageModel, decode, decoders, linear
from rlgkd.lm.decoders import HuggingFaceDecoder, LlamaDecoder, writer, written_out
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.fast.llama import FAMILIES
from rlgkd.lm.generate import Completion, CoSampler

WORDS = [f"w{n}" for n in range(30)]
TOKENIZER = tiny.word_tokenizer(*WORDS)
NEW = 24
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 31, size=length).tolist() for length in (7, 1, 12, 3, 5, 9, 2, 16)]
EVEN = [prompt[:1] * 6 for prompt in PROMPTS]
OTHERS = ("gemma", "gpt2", "gpt_neox")


@pytest.fixture(autouse=True)
def small_weights_count(monkeypatch):
    """The models here are tiny; let oneDNN have their products as it has those of large ones."""
    monkeypatch.setattr(linear, "LAID_OUT", 1)
    monkeypatch.setattr(linear, "WIDE", 1)


def both_ways(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, prompts=PROMPTS, **settings
) -> tuple[list[Completion], ...]:
    rows = len(prompts) * settings.get("group", 1)
    settings = {"uniforms_BT": np.random.default_rng(1).random((rows, NEW)), "max_new_tokens": NEW, **settings}
    fast = decode(lm, prompts, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "written_out", lambda lm: False)
        return fast, decode(lm, prompts, **settings)


def check_same(fast: list[Completion], plain: list[Completion]) -> None:
    assert [c.ids for c in fast] == [c.ids for c in plain]
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=2e-5)
        np.testing.assert_allclose(ours.entropy, theirs.entropy, atol=2e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS, EVEN], ids=["ragged", "even"])
def test_the_layers_written_out_write_what_the_model_writes(kind, prompts, monkeypatch):
    lm = tiny.family(kind, TOKENIZER)
    with torch.no_grad():  # biases and norms that are not those of a fresh model
        for name, parameter in lm.module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    assert isinstance(writer(lm, 8, 64), LlamaDecoder)
    fast, plain = both_ways(lm, monkeypatch, prompts, group=3)
    check_same(fast, plain)
    lengths = {len(c.ids) for c in fast}
    assert NEW in lengths and len(lengths) > 4, "no row left early, so the test saw no row move"


@pytest.mark.parametrize("rope", ["linear", "llama3", "dynamic"])
def test_rotary_embeddings(rope, monkeypatch):
    parameters = {"rope_type": rope, "rope_theta": 100.0, "factor": 4.0}
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    lm = tiny.family("llama", TOKENIZER, rope_parameters=parameters)
    assert written_out(lm) == (rope != "dynamic")
    check_same(*both_ways(lm, monkeypatch))


def test_without_onednn(monkeypatch):
    lm = tiny.family("qwen2", TOKENIZER)
    laid_out = both_ways(lm, monkeypatch)[0]
    monkeypatch.setattr(linear, "has_onednn", lambda weight: False)
    check_same(both_ways(lm, monkeypatch)[0], laid_out)


def test_in_double_precision(monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER)
    lm.module.double()
    check_same(*both_ways(lm, monkeypatch))


def test_two_models_together_greedy_and_limits_of_rows(monkeypatch):
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
def test_rows_that_wait_take_the_places_of_those_that_end(kind, at_once, monkeypatch):
    lm = tiny.family(kind, TOKENIZER)
    settings = {"group": 3, "max_new_tokens": [1 + 7 * n % NEW for n in range(3 * len(PROMPTS))]}
    together = both_ways(lm, monkeypatch, **settings)[0]
    widths: list[int] = []
    lm.rows_at_once = at_once
    for some in both_ways(lm, monkeypatch, on_step=lambda n: not widths.append(n), **settings):
        check_same(some, together)
    assert max(widths) == at_once
    assert at_once > 3 or len(widths) / 2 > max(map(len, PROMPTS)) + NEW, "the ring of columns did not go round"
    if at_once == 10:
        assert sum(n > 6 for n in widths) > len(widths) / 2, "the places of rows that had ended stood empty"


def test_an_encoder_reads_the_rows_that_wait_when_all_others_have_ended():
    lm = language_model(tiny.model("t5", vocabulary=31, scale=0.1), TOKENIZER)
    settings = {"uniforms_BT": np.random.default_rng(1).random((8, NEW)), "max_new_tokens": NEW}
    together = decode(lm, PROMPTS, **settings)
    lm.rows_at_once = 3
    check_same(decode(lm, PROMPTS, **settings), together)


def test_of_shapes_that_stay_the_same(monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    lm.compiled, lm.rows_at_once = True, 5
    check_same(*both_ways(lm, monkeypatch, group=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_compiled(monkeypatch):
    lm = tiny.family("llama", TOKENIZER)
    lm.compiled, lm.rows_at_once = True, 5
    check_same(*both_ways(lm, monkeypatch, group=2))


@pytest.mark.parametrize("precision", ["full", "mixed"])
def test_replayed(precision, monkeypatch):
    lm = tiny.family("qwen3", TOKENIZER)
    settings = {"group": 2, "max_new_tokens": [1 + 7 * n % NEW for n in range(2 * len(PROMPTS))]}
    lm.rows_at_once = 5
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"), monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        lm.compiled = True
        plain = both_ways(lm, monkeypatch, **settings)[0]
        made = graphs.on_a_cpu(patch)
        again, other = (both_ways(lm, monkeypatch, **settings)[0] for _ in range(2))
    check_same(again, plain)
    check_same(other, plain)
    assert len(made) == 2, "a graph for each writer"
    assert all(graph.replays > NEW for graph in made)


@pytest.mark.parametrize("asks", [torch.Tensor.item, bool, lambda x: x[x > 0], torch.nonzero])
@torch.inference_mode()
def test_a_step_that_asks_the_host_is_no_graph(asks, monkeypatch):
    graphs.on_a_cpu(monkeypatch)
    with pytest.raises(AssertionError, match="waits for the device"):
        decoders.replayed(lambda x: (asks(x.sum()), x)[1], torch.device("cpu"))(torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled, monkeypatch):
    lm = tiny.family("llama", TOKENIZER)
    lm.module.to("cuda")
    lm.compiled, lm.rows_at_once = compiled, 5
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
def test_a_writer_and_its_weights_are_gone_when_nobody_holds_them(compiled, monkeypatch):
    lm = tiny.family("llama", TOKENIZER)
    lm.compiled = compiled
    monkeypatch.setattr(torch, "compile", lambda function: function)
    graphs.on_a_cpu(monkeypatch)
    made = writer(lm, 2, 64)
    made.admit(PROMPTS[:2], np.arange(2))
    made.write(torch.tensor([1, 2]))
    gone, written = weakref.ref(made), made
    gc.disable()
    try:
        del made, written
        assert gone() is None
    finally:
        gc.enable()


def test_a_changed_weight_is_seen_by_the_next_text(monkeypatch):
    lm = tiny.family("llama", TOKENIZER)
    before = both_ways(lm, monkeypatch)[0]
    with torch.no_grad():
        lm.body.layers[1].mlp.down_proj.weight.mul_(-1)
    fast, plain = both_ways(lm, monkeypatch)
    assert [c.ids for c in fast] != [c.ids for c in before]
    check_same(fast, plain)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_families_write_with_their_own_forward_pass(kind):
    assert isinstance(writer(tiny.family(kind, TOKENIZER), 8, 64), HuggingFaceDecoder)


class Adapted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1.0


def test_a_changed_layer_or_a_window_is_not_written_out():
    lm = tiny.family("llama", TOKENIZER)
    lm.body.layers[0].mlp.up_proj = Adapted(16, 32, bias=False)
    assert not written_out(lm)
    assert not written_out(tiny.family("mistral", TOKENIZER, sliding_window=4))
    assert not written_out(tiny.family("llama", TOKENIZER, hidden_act="gelu"))
