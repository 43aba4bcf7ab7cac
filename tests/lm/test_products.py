"""Products by oneDNN against torch's own: the same numbers and gradients, and only where they are asked for."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from rlgkd.lm import products
from rlgkd.lm.products import LAID_OUT, WIDE, has_onednn, thin, wide, wide_products

NUMBERS = torch.Generator().manual_seed(0)
TOKENIZER = tiny.word_tokenizer(*"ABCDEFGHIJK")


@pytest.fixture
def calls(monkeypatch) -> list[torch.Size]:
    """The shapes of what oneDNN was given."""
    seen: list[torch.Size] = []
    run = products._onednn

    def counted(x, weight, bias):
        seen.append(x.shape)
        return run(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", counted)
    return seen


def gradients(function, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, WIDE), (2, 5, WIDE), (WIDE,)])
def test_a_wide_product_and_its_gradients_are_those_of_torch(shape, bias, calls):
    x, weight = torch.randn(shape, generator=NUMBERS), torch.randn(WIDE + 8, WIDE, generator=NUMBERS)
    inputs = [x, weight, *([torch.randn(WIDE + 8, generator=NUMBERS)] if bias else [])]
    for ours, theirs in zip(gradients(wide, *inputs), gradients(nn.functional.linear, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 * has_onednn(weight)


def test_a_gradient_is_formed_only_where_it_is_wanted():
    x, weight = torch.randn(3, WIDE, requires_grad=True), torch.randn(WIDE, WIDE)
    wide(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None
    wide(x.detach(), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not wide(x, weight).requires_grad


@pytest.mark.parametrize("kind", ["small", "double", "autocast"])
def test_other_products_are_left_to_torch(kind, calls):
    size, dtype = (WIDE - 1 if kind == "small" else WIDE), (torch.float64 if kind == "double" else torch.float32)
    x, weight = torch.randn(4, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = wide(x, weight)
        assert torch.equal(found, nn.functional.linear(x, weight))
    assert not calls


def test_the_layers_of_a_model_multiply_by_it_within_and_only_there(monkeypatch, calls):
    lm = tiny.family("llama", TOKENIZER)
    monkeypatch.setattr(products, "WIDE", 1)
    ids = torch.arange(10)[None]
    plain = lm.module(input_ids=ids).logits
    assert not calls
    with wide_products(lm.head.weight):
        ours = lm.module(input_ids=ids).logits
    assert len(calls) == has_onednn(lm.head.weight) * sum(isinstance(part, nn.Linear) for part in lm.module.modules())
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["laid out", "small", "elsewhere"])
def test_a_product_of_weights_below_each_other_of_which_some_have_a_bias(way, monkeypatch, calls):
    monkeypatch.setattr(products, "LAID_OUT", 0 if way == "laid out" else LAID_OUT)
    if way == "elsewhere":
        monkeypatch.setattr(products, "has_onednn", lambda weight: False)
    x, one, other = (torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)) for rows in (5, 6, 7))
    bias = torch.arange(7.0)
    with torch.inference_mode():
        ours = thin([one, other], [None, bias], 5)(x)
        alone = thin([other], [bias], 5)(x)
    torch.testing.assert_close(ours, torch.cat([x @ one.T, x @ other.T + bias], dim=1))
    torch.testing.assert_close(alone, x @ other.T + bias)
    assert len(calls) == 2 * (way == "laid out" and has_onednn(one))
