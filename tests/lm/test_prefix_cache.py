"""Environments' rows, run at once or step by step: the states equal those of each row alone."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.errors import ModelError
from rlgkd.lm import LanguageModel, language_model
from rlgkd.lm.prefix_cache import PrefixCache, last_states

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
KINDS = ("llama", "gpt2", "qwen2")


def model(kind: str = "llama") -> LanguageModel:
    return language_model(tiny.model(kind, vocabulary=4), TOKENIZER)


def padded(*rows: list[int], width: int = 8) -> np.ndarray:
    return np.array([row + [-1] * (width - len(row)) for row in rows])


def alone(lm: LanguageModel, tokens_BT: np.ndarray) -> torch.Tensor:
    rows = [torch.from_numpy(row[row >= 0])[None] for row in tokens_BT]
    return torch.stack([lm.body(input_ids=row).last_hidden_state[0, -1] for row in rows])


@torch.no_grad()
def stepped(cache: PrefixCache, tokens_BT: np.ndarray) -> torch.Tensor:
    return cache.last_states(torch.from_numpy(tokens_BT))


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.int64, (7, 4), elements=st.integers(-1, 1)))
def test_rows_at_once_have_the_states_of_each_alone(drawn: np.ndarray) -> None:
    rows = [[1, *row[np.cumprod(row >= 0).astype(bool)].tolist()] for row in drawn]
    tokens_BT = padded(*rows)
    lm = model()
    states_BH = last_states(lm, torch.from_numpy(tokens_BT))
    torch.testing.assert_close(states_BH, alone(lm, tokens_BT), atol=1e-5, rtol=1e-4)


def test_the_prefixes_of_a_text_cost_one_pass_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, shapes = model(), []
    states = lm.states
    monkeypatch.setattr(lm, "states", lambda batch: shapes.append(batch.tokens_BT.shape) or states(batch))
    text = [1, 2, 3, 2, 1, 0]
    tokens_BT = padded(*(text[:n] for n in (3, 6, 1, 2, 5, 4)), [1, 3], [1, 2])
    states_BH = last_states(lm, torch.from_numpy(tokens_BT))
    assert shapes == [(2, 7)], "two rows of six tokens and one column more"
    torch.testing.assert_close(states_BH, alone(lm, tokens_BT), atol=1e-5, rtol=1e-4)


def test_the_gradient_equals_that_of_the_rows_alone() -> None:
    tokens_BT, gradients = padded([1, 2], [1, 2, 3], [1], [3, 3]), []
    for run in (lambda lm: last_states(lm, torch.from_numpy(tokens_BT)), lambda lm: alone(lm, tokens_BT)):
        lm = model()
        (run(lm) ** 3).sum().backward()
        gradients.append([p.grad for p in lm.body.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_with_rows_that_restart_the_states_equal_those_of_each_alone(kind: str) -> None:
    lm, rng = model(kind), np.random.default_rng(0)
    cache, rows = PrefixCache(lm), [[1], [2, 3], [3, 1, 2], [1, 1]]
    kept, replaced = 0, 0
    for _ in range(40):
        before = cache.cached
        tokens_BT = padded(*rows)
        torch.testing.assert_close(stepped(cache, tokens_BT), alone(lm, tokens_BT), atol=1e-4, rtol=1e-4)
        assert cache.cached is not None
        kept += before is not None and cache.cached.state is before.state
        assert cache.cached.state.attention_BT.shape[1] == max(map(len, rows)), "it holds more than the longest row"
        for n, row in enumerate(rows):
            over = len(row) == 8 or rng.random() < 0.15
            replaced += over
            rows[n] = rng.integers(4, size=rng.integers(1, 4)).tolist() if over else [*row, int(rng.integers(4))]
    assert kept > 30 and replaced > 10


def test_a_row_at_the_end_of_the_context_is_replaced_without_stepping_over_it() -> None:
    lm = model("gpt2")
    cache = PrefixCache(lm)
    long = [n % 4 for n in range(tiny.CONTEXT)]
    stepped(cache, padded(long, [1], width=tiny.CONTEXT))
    tokens_BT = padded([2], [1, 2], width=tiny.CONTEXT)
    torch.testing.assert_close(stepped(cache, tokens_BT), alone(lm, tokens_BT), atol=1e-4, rtol=1e-4)


def test_an_encoder_sees_the_prompt_that_a_row_began_with() -> None:
    lm = model("t5")
    cache, rows = PrefixCache(lm), [[1, 2], [3]]
    prompts = [2, 1]
    for step in range(5):
        states_BH = stepped(cache, padded(*rows))
        fresh = [lm.prefill([row[:n]], [row[n:]])[0][0] for row, n in zip(rows, prompts, strict=True)]
        torch.testing.assert_close(states_BH, torch.stack(fresh), atol=1e-4, rtol=1e-4)
        rows = [[*row, 1 + step % 3] for row in rows]
        if step == 2:
            rows[0], prompts[0] = [3, 3, 3], 3
    with pytest.raises(ModelError, match="give a causal model"):
        last_states(lm, torch.from_numpy(padded(*rows)))


def test_where_gradients_are_formed_nothing_is_cached() -> None:
    lm = model()
    cache = PrefixCache(lm)
    cache.last_states(torch.from_numpy(padded([1, 2]))).sum().backward()
    assert cache.cached is None and lm.body.embed_tokens.weight.grad[1].abs().sum() > 0


def test_rows_other_than_the_cached_ones_start_again() -> None:
    lm = model()
    cache = PrefixCache(lm)
    for rows in ([[1], [2]], [[1, 2, 3]], [[1, 2], [3, 1], [2, 2]], [[1, 2], [3, 1], [2, 2]]):
        tokens_BT = padded(*rows)
        torch.testing.assert_close(stepped(cache, tokens_BT), alone(lm, tokens_BT), atol=1e-5, rtol=1e-4)
