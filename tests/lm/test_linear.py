"""Linear layers by oneDNN against torch's own: the same values and gradients, and only where they are wanted."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from rlgkd.lm import linear
from rlgkd.lm.linear import (
    PREPACK_MIN_WEIGHTS,
    add_weight_gradient,
    has_onednn,
    onednn_linear,
    onednn_linears,
    prepacked_linear,
)

NUMBERS = torch.Generator().manual_seed(0)
TOKENIZER = tiny.word_tokenizer(*"ABCDEFGHIJK")
SIZE = 24


@pytest.fixture(autouse=True)
def onednn_for_small_weights(monkeypatch):
    """The weights here are tiny; let oneDNN multiply by them as by large ones."""
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 4 * SIZE**2)
    monkeypatch.setattr(linear, "WEIGHT_GRADIENT_FACTOR", 1)


@pytest.fixture
def calls(monkeypatch) -> list[torch.Size]:
    """The shapes of the inputs that oneDNN was called with."""
    seen: list[torch.Size] = []
    run = linear._call_onednn

    def counted(x, weight, bias, residual=None):
        seen.append(x.shape)
        return run(x, weight, bias, residual)

    monkeypatch.setattr(linear, "_call_onednn", counted)
    return seen


def gradients(function, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, SIZE), (2, 5, SIZE), (4, SIZE)])
def test_a_linear_layer_and_its_gradients_equal_those_of_torch(shape, bias, calls):
    x, weight = torch.randn(shape, generator=NUMBERS), torch.randn(SIZE + 8, SIZE, generator=NUMBERS)
    inputs = [x, weight, *([torch.randn(SIZE + 8, generator=NUMBERS)] if bias else [])]
    for ours, theirs in zip(gradients(onednn_linear, *inputs), gradients(nn.functional.linear, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3 * has_onednn(weight)


def test_a_gradient_is_formed_only_where_it_is_wanted():
    x, weight = torch.randn(5, SIZE, requires_grad=True), torch.randn(SIZE, SIZE)
    onednn_linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None
    onednn_linear(x.detach(), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not onednn_linear(x, weight).requires_grad


@pytest.mark.parametrize("kind", ["small", "double", "autocast"])
def test_small_double_and_autocast_products_are_left_to_torch(kind, calls):
    rows, dtype = (3 if kind == "small" else 4), (torch.float64 if kind == "double" else torch.float32)
    x, weight = torch.randn(rows, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = onednn_linear(x, weight)
        assert torch.equal(found, nn.functional.linear(x, weight))
    assert not calls


def test_a_models_linear_layers_use_onednn_within_the_context_alone(monkeypatch, calls):
    lm = tiny.family("llama", TOKENIZER)
    monkeypatch.setattr(linear, "ONEDNN_MIN_MULTIPLICATIONS", 1)
    ids = torch.arange(10)[None]
    calls.clear()  # of the checks at opening
    plain = lm.module(input_ids=ids).logits
    assert not calls
    with onednn_linears(torch.device("cpu")):
        ours = lm.module(input_ids=ids).logits
    assert len(calls) == has_onednn(lm.head.weight) * sum(isinstance(part, nn.Linear) for part in lm.module.modules())
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["prepacked", "small", "elsewhere"])
def test_joined_linear_layers_of_which_some_have_a_bias(way, monkeypatch, calls):
    monkeypatch.setattr(linear, "PREPACK_MIN_WEIGHTS", 0 if way == "prepacked" else PREPACK_MIN_WEIGHTS)
    if way == "elsewhere":
        monkeypatch.setattr(linear, "has_onednn", lambda weight: False)
    x, one, other = (torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)) for rows in (5, 6, 7))
    bias, residual = torch.arange(7.0), torch.randn(5, 7, generator=NUMBERS)
    with torch.inference_mode():
        ours = prepacked_linear([one, other], [None, bias], 5)(x)
        alone = prepacked_linear([other], [bias], 5)(x)
        added = [prepacked_linear([other], [b], 5)(x, residual) for b in (None, bias)]
    torch.testing.assert_close(ours, torch.cat([x @ one.T, x @ other.T + bias], dim=1))
    torch.testing.assert_close(alone, x @ other.T + bias)
    for found, b in zip(added, (0.0, bias), strict=True):
        torch.testing.assert_close(found, residual + x @ other.T + b)
    assert len(calls) == 4 * (way == "prepacked" and has_onednn(one))


@pytest.mark.parametrize("size", [0, PREPACK_MIN_WEIGHTS], ids=["prepacked", "small"])
def test_in_mixed_precision_a_prepacked_layer_equals_autocast_and_adds_in_full_precision(size, monkeypatch, calls):
    monkeypatch.setattr(linear, "PREPACK_MIN_WEIGHTS", size)
    x, residual = torch.randn(5, 16, generator=NUMBERS), 1e3 + torch.randn(5, 7, generator=NUMBERS)
    weight, bias = torch.randn(7, 16, generator=NUMBERS), torch.randn(7, generator=NUMBERS)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        function, theirs = prepacked_linear([weight], [bias], 5), nn.functional.linear(x, weight, bias)
        weight.zero_()  # it is not used any more
        ours, added = function(x), function(x, residual)
    assert ours.dtype == torch.bfloat16 and added.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(added, residual + ours)
    assert len(calls) == 2 * (size == 0 and has_onednn(weight.bfloat16()))


@pytest.mark.parametrize("kind", ["onednn", "torch", "mixed"])
def test_a_weight_gradient_is_added_in_place(kind, monkeypatch, calls):
    if kind == "torch":
        monkeypatch.setattr(linear, "has_onednn", lambda weight: False)
    upstream, x, before = (torch.randn(*size, generator=NUMBERS) for size in ((50, SIZE), (50, 9), (SIZE, 9)))
    x = x.bfloat16() if kind == "mixed" else x
    total = before.clone()
    for part in range(0, SIZE, 7):  # as the loss gives them
        add_weight_gradient(total[part : part + 7], upstream[:, part : part + 7], x)
    torch.testing.assert_close(total, before + upstream.T @ x.float(), rtol=1e-4, atol=1e-4)
    assert len(calls) == (SIZE // 7 if kind == "onednn" and has_onednn(before) else 0)  # the rest is too small
