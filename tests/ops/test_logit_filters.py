"""Top-k, top-p and min-p: against values worked out by hand, a slow loop, and transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlgkd.errors import SettingError
from rlgkd.ops import logit_filters as F

INF = math.inf


def kept(logits: torch.Tensor) -> list:
    return (logits > -INF).tolist()


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 50, 1000])
def test_top_k_is_that_of_transformers(k: int) -> None:
    logits_BV = random_logits(40, 50)
    assert torch.equal(F.top_k(logits_BV, k), TopKLogitsWarper(k)(None, logits_BV))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_is_that_of_transformers(p: float) -> None:
    for scale in (0.1, 1.0, 5.0):
        logits_BV = random_logits(40, 50, scale=scale)
        assert torch.equal(F.top_p(logits_BV, p), TopPLogitsWarper(p)(None, logits_BV))


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(p: float) -> None:
    for scale in (0.1, 1.0, 5.0):
        logits_BV = random_logits(40, 50, scale=scale)
        assert torch.equal(F.min_p(logits_BV, p), MinPLogitsWarper(p)(None, logits_BV))


def test_top_p_is_the_smallest_set_of_likeliest_tokens_that_reaches_the_mass() -> None:
    for seed in range(50):
        logits_V = random_logits(12, seed=seed)
        p = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
        left, mass = [], 0.0
        for token in logits_V.argsort(descending=True).tolist():
            if mass < p:
                left.append(token)
            mass += logits_V.softmax(-1)[token].item()
        assert kept(F.top_p(logits_V, p)) == [token in left for token in range(12)]


def test_a_mass_that_is_met_exactly_is_reached() -> None:
    assert kept(F.top_p(logits_of(0.25, 0.5, 0.125, 0.125), 0.75)) == [True, True, False, False]
    assert kept(F.top_p(logits_of(0.25, 0.5, 0.125, 0.125), 0.7500001)) == [True, True, True, False]
    assert kept(F.min_p(logits_of(0.25, 0.5, 0.125, 0.125), 0.25)) == [True] * 4


def test_of_equal_tokens_top_k_and_min_p_keep_all_and_top_p_those_of_the_smaller_ids() -> None:
    even = torch.zeros(3, 4)
    assert kept(F.top_k(even, 2)) == kept(F.min_p(even, 1.0)) == [[True] * 4] * 3
    assert kept(F.top_p(even, 0.5)) == [[True, True, False, False]] * 3
    assert kept(F.top_p(even, 0.51)) == [[True, True, True, False]] * 3


def test_at_least_one_token_stays_and_those_that_were_impossible_stay_so() -> None:
    logits_V = torch.tensor([-INF, -3.0, -INF, -4.0])
    for filtered in (F.top_k(logits_V, 1), F.top_p(logits_V, 1e-12), F.min_p(logits_V, 1.0)):
        assert kept(filtered) == [False, True, False, False]
    for filtered in (F.top_k(logits_V, 4), F.top_p(logits_V, 1.0), F.top_p(logits_V, 1 - 1e-9), F.min_p(logits_V, 0.0)):
        assert torch.equal(filtered, logits_V)


def test_all_of_a_large_vocabulary_stays_at_a_mass_of_1() -> None:
    """By a sum in float32 that passes 1 before the last token, it would not."""
    logits_V = random_logits(100_000).float()
    assert torch.equal(F.top_p(logits_V, 1.0), logits_V)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_shape_and_dtype_come_back_as_they_were(dtype: torch.dtype) -> None:
    logits_BTV = random_logits(2, 3, 20).to(dtype)
    for filtered in (F.top_k(logits_BTV, 3), F.top_p(logits_BTV, 0.5), F.min_p(logits_BTV, 0.2)):
        assert filtered.shape == logits_BTV.shape and filtered.dtype == dtype
        assert torch.equal(filtered[filtered > -INF], logits_BTV[filtered > -INF])
        assert (filtered > -INF).any(-1).all() and not (filtered > -INF).all()


def test_filters_come_one_behind_the_other_as_in_transformers() -> None:
    logits_BV = random_logits(40, 50)
    expected = logits_BV
    for warper in (TopKLogitsWarper(10), TopPLogitsWarper(0.9), MinPLogitsWarper(0.1)):
        expected = warper(None, expected)
    assert torch.equal(F.Filters(top_k=10, top_p=0.9, min_p=0.1)(logits_BV), expected)
    assert not F.Filters() and F.Filters()(logits_BV) is logits_BV
    assert F.Filters(min_p=0.0) and F.Filters(top_k=1) and F.Filters(top_p=1.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
    ],
)
def test_a_value_outside_its_range_is_refused_at_once(setting: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"{setting}: {value} does not work; give a "):
        F.Filters(**{setting: value})
