"""The fused head and loss against the plain ones."""

from __future__ import annotations

import pytest
import tiny
import torch

from rlgkd.lm import LanguageModel, fused_loss, fused_sum
from rlgkd.ops import divergence

TOKENIZER = tiny.word_tokenizer(*"ABCDEFGHIJK")
N = 11


def policy(kind: str, bias: bool = False) -> LanguageModel:
    module = tiny.model(kind, vocabulary=12).double()
    if bias:
        generator = torch.Generator().manual_seed(1)
        module.lm_head.bias = torch.nn.Parameter(torch.randn(12, dtype=torch.float64, generator=generator))
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    return LanguageModel(module, TOKENIZER)


def run(lm: LanguageModel, fuse: bool):
    generator = torch.Generator().manual_seed(0)
    teacher_NH, weights_N = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, 16), (N,)))
    ids = torch.randint(0, 12, (1, N), generator=generator)

    def loss(logits_NV, teacher_NV, which):
        value_N = divergence.reverse_kl(teacher_NV, logits_NV)
        return (weights_N[which] * value_N).sum(), {"divergence": value_N, "first": logits_NV[:, 0]}

    teacher = policy("llama"), teacher_NH
    lm.module.zero_grad()
    states_NH = lm.body(input_ids=ids).last_hidden_state[0]
    states_NH.retain_grad()
    if fuse:
        total, records = fused_sum(lm, states_NH, loss, teacher)
    else:
        total, records = loss(lm.logits(states_NH), teacher[0].logits(teacher_NH).detach(), slice(None))
    (3.0 * total).backward()
    return [
        total.detach(),
        *(r.detach() for r in records.values()),
        states_NH.grad,
        *(p.grad for p in lm.module.parameters()),
    ]


@pytest.mark.parametrize("part", [5, 100])
@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 100])
@pytest.mark.parametrize(("kind", "bias"), [("llama", False), ("gpt2", False), ("qwen2", False), ("gpt2", True)])
def test_the_fused_loss_and_its_gradients_equal_the_plain_ones(monkeypatch, kind, bias, chunk, block, part):
    monkeypatch.setattr(fused_loss, "CHUNK_ELEMENTS", chunk * 12)
    monkeypatch.setattr(fused_loss, "BLOCK_ELEMENTS", block * 12)
    monkeypatch.setattr(fused_loss, "VOCABULARY_SLICE", part)
    lm = policy(kind, bias)
    for ours, plain in zip(run(lm, True), run(lm, False), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-10)


def test_in_half_precision_no_gradient_is_a_sum_of_rounded_slices(monkeypatch):
    monkeypatch.setattr(fused_loss, "VOCABULARY_SLICE", 1)
    lm = policy("llama")
    lm.module.bfloat16()
    states_NH = torch.randn(N, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    fused_sum(lm, states_NH, lambda logits_NV, _teacher_NV, _which: (logits_NV.square().sum(), {}))[0].backward()
    plain_NH = states_NH.detach().requires_grad_()
    lm.logits(plain_NH).square().sum().backward()
    assert torch.equal(states_NH.grad, plain_NH.grad)


def test_in_mixed_precision_the_gradients_equal_those_of_autocast(monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_ELEMENTS", 4 * 12)
    lm = policy("gpt2", bias=True)
    lm.module.float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = run(lm, True), run(lm, False)
    for our, its in zip(ours, plain, strict=True):
        torch.testing.assert_close(our, its, atol=0.02 * its.abs().max().item(), rtol=0.02, check_dtype=our.ndim > 0)


def test_a_frozen_head_receives_no_gradient_and_the_states_still_do():
    lm = policy("llama")
    lm.head.weight.requires_grad_(False)
    results = run(lm, True)
    assert lm.head.weight.grad is None
    assert results[3].abs().sum() > 0


def test_no_gradient_is_formed_under_no_grad():
    lm = policy("llama")
    seen = []

    def loss(logits_NV, _teacher_NV, which):
        seen.append(logits_NV.requires_grad)
        return logits_NV.logsumexp(-1).sum(), {}

    with torch.no_grad():
        total, _ = fused_sum(lm, torch.randn(3, 16, dtype=torch.float64), loss)
    assert seen == [False]
    assert not total.requires_grad


def test_on_an_accelerator_chunks_are_larger_and_are_not_cut_into_blocks():
    states_NH, vocabulary = torch.empty(1000, 16, device="meta"), 152_000
    (first, *_), (on_a_cpu, *_) = (list(fused_loss._chunks(x, vocabulary)) for x in (states_NH, torch.empty(1000, 16)))
    assert first.stop > 3 * on_a_cpu.stop
    logits_NV = torch.empty(first.stop, vocabulary, device="meta")
    assert list(fused_loss._blocks(first, logits_NV)) == [first]
    assert list(fused_loss._vocabulary_slices(logits_NV)) == [slice(0, vocabulary)]


def test_only_one_chunk_is_held_and_all_are_of_about_one_size(monkeypatch):
    monkeypatch.setattr(fused_loss, "CHUNK_ELEMENTS", 5 * 12)
    lm = policy("llama")
    sizes = []

    def loss(logits_NV, _teacher_NV, which):
        sizes.append(len(logits_NV))
        return logits_NV.sum(), {}

    fused_sum(lm, torch.randn(N, 16, dtype=torch.float64), loss)
    assert sizes == [4, 4, 3]
