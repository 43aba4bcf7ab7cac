"""Sampling by inverse transform: against a loop, against the probabilities, at the edges, and batch by batch."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.errors import SettingError
from rlgkd.ops import sampling as S

INF = math.inf
BELOW_ONE = math.nextafter(1.0, 0.0)


@pytest.fixture(autouse=True, scope="module", params=[S._ONE_LEVEL_MAX, 0], ids=["at once", "in blocks"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small vocabularies in both of the ways in which F is summed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S, "_ONE_LEVEL_MAX", request.param)
        yield


def test_the_token_is_the_first_whose_cumulative_probability_exceeds_u() -> None:
    generator = torch.Generator().manual_seed(0)
    for size_V in (1, 2, 255, 256, 257, 1000):
        logits_BV = 2 * torch.randn(40, size_V, generator=generator, dtype=torch.float64)
        u_B = torch.rand(40, generator=generator, dtype=torch.float64)
        token_B, logp_B, _ = S.sample(logits_BV, u_B)
        expected = [
            next(v for v, total in enumerate(np.cumsum(p)) if total > u)
            for p, u in zip(logits_BV.softmax(-1).numpy(), u_B.tolist(), strict=True)
        ]
        assert token_B.tolist() == expected
        torch.testing.assert_close(logp_B, logits_BV.log_softmax(-1).gather(1, token_B[:, None])[:, 0])


def test_the_log_probability_is_that_of_the_given_logits_in_float32_for_bfloat16() -> None:
    logits_BV = (3 * torch.randn(64, 3000, generator=torch.Generator().manual_seed(0))).bfloat16()
    token_B, logp_B, _ = S.sample(logits_BV, torch.rand(64))
    assert token_B.dtype == torch.int64 and logp_B.dtype == torch.float32
    torch.testing.assert_close(logp_B, logits_BV.float().log_softmax(-1).gather(1, token_B[:, None])[:, 0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_the_entropy_is_that_of_the_given_logits(scale: float) -> None:
    for size_V in (1, 257, 3000):
        logits_BV = 10 + scale * torch.randn(16, size_V, generator=torch.Generator().manual_seed(0))
        logits_BV[:, 1::7] = -INF
        entropy_B = S.sample(logits_BV, torch.rand(16)).entropy_B
        expected_B = torch.special.entr(logits_BV.double().softmax(-1)).sum(-1)
        torch.testing.assert_close(entropy_B.double(), expected_B, rtol=0, atol=1e-6 * logits_BV.max().item())
        assert (entropy_B >= 0).all()


@pytest.mark.parametrize("size_V", [5, 700])
def test_frequencies_agree_with_the_probabilities(size_V: int) -> None:
    """Chi-square over 50,000 draws: within 5 standard deviations of its mean."""
    n = 50_000
    logits_V = torch.randn(size_V, generator=torch.Generator().manual_seed(1))
    u_B = torch.from_numpy(S.uniforms(0, "frequencies", 0, n))
    tokens = torch.cat([S.sample(logits_V.expand(len(u), size_V), u)[0] for u in u_B.split(5_000)])
    expected = n * logits_V.double().softmax(-1)
    chi_square = ((torch.bincount(tokens, minlength=size_V) - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - (size_V - 1)) < 5 * math.sqrt(2 * (size_V - 1))


def test_equally_spaced_numbers_hit_every_token_in_proportion() -> None:
    p = torch.tensor([0.5, 0.0, 0.125, 0.25, 0.125])
    u_B = (torch.arange(1000) + 0.5) / 1000
    tokens = S.sample(p.log().expand(1000, 5), u_B)[0]
    assert torch.bincount(tokens, minlength=5).tolist() == [500, 0, 125, 250, 125]
    assert torch.equal(tokens, tokens.sort().values)


def test_a_number_on_the_edge_between_two_tokens_belongs_to_the_second() -> None:
    assert S.sample(torch.zeros(4, 4), torch.tensor([0.0, 0.25, 0.5, 0.75]))[0].tolist() == [0, 1, 2, 3]


def test_a_cumulative_sum_that_is_not_monotone_never_hits_a_weight_of_zero() -> None:
    """As a parallel scan on a GPU may leave it: above the target at the token of weight 0."""
    cumulative, weight = torch.tensor([[0.5, 0.5000001, 0.5, 1.0]]), torch.tensor([[0.5, 0.0, 0.0, 0.5]])
    assert S._first_index_above(S._nondecreasing(cumulative, weight), weight, torch.tensor([[0.5]])).item() == 3


def test_a_target_that_rounding_has_put_below_a_block_hits_no_weight_of_zero_in_front() -> None:
    """Blocks whose sums round, each with a dead token in front."""
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(2000, 1024, generator=generator, dtype=torch.float64)
    logits_BV[:, ::256] = -INF
    p_BN = torch.softmax(logits_BV, -1).view(2000, 4, 256).sum(-1)
    edge_B = p_BN.cumsum(-1)[:, 1] / p_BN.cumsum(-1)[:, -1]
    for nudge in (-(2.0**-53), 0.0, 2.0**-53):
        token_B, logp_B, _ = S.sample(logits_BV, edge_B + nudge)
        assert (token_B % 256 != 0).all() and logp_B.isfinite().all()


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.5, BELOW_ONE, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_edges_never_give_a_token_of_probability_zero(u: float, dtype: torch.dtype) -> None:
    for size_V in (3, 300, 1000):
        for alive in ([0], [1], [size_V - 1], [size_V // 2], [1, size_V - 1]):
            for dead in (-INF, -1e4):
                logits_BV = torch.full((1, size_V), dead)
                logits_BV[0, alive] = 0.0
                token_B, logp_B, _ = S.sample(logits_BV, torch.tensor([u], dtype=dtype))
                assert token_B.item() in alive
                assert logp_B.item() == pytest.approx(-math.log(len(alive)))


@given(seed=st.integers(0, 10_000), u=st.floats(0, 1), size_V=st.integers(1, 600), share=st.floats(0, 0.99))
@settings(deadline=None)
def test_suppressed_tokens_are_never_sampled(seed: int, u: float, size_V: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = 20 * torch.randn(1, size_V, generator=generator)
    suppressed_BV = torch.rand(1, size_V, generator=generator) < share
    suppressed_BV[0, torch.randint(size_V, (1,), generator=generator)] = False
    token_B, logp_B, _ = S.sample(logits_BV.masked_fill(suppressed_BV, -INF), torch.tensor([u], dtype=torch.float64))
    assert not suppressed_BV[0, token_B.item()]
    assert logp_B.isfinite().all() and logp_B.item() <= 1e-6


def test_a_row_is_sampled_alike_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    for size_V in (50, 479, 3001):
        logits_BV, u_B = 3 * torch.randn(33, size_V, generator=generator), torch.rand(33, generator=generator)
        token_B, logp_B, _ = S.sample(logits_BV, u_B)
        for rows in ([0], [32], [5, 6, 7], list(range(32, -1, -1))):
            token, logp, _ = S.sample(logits_BV[rows], u_B[rows])
            assert torch.equal(token, token_B[rows])
            torch.testing.assert_close(logp, logp_B[rows], rtol=0, atol=1e-6)


def test_an_empty_batch_gives_no_tokens() -> None:
    token_B, logp_B, _ = S.sample(torch.zeros(0, 5), torch.zeros(0))
    assert token_B.shape == logp_B.shape == (0,)


def test_rows_without_a_distribution_and_arguments_that_do_not_fit_are_refused() -> None:
    for bad in ([math.nan, 0.0], [INF, 0.0], [-INF, -INF]):
        with pytest.raises(SettingError, match=r"logits_BV: 'rows \[1\]'.*a finite logit"):
            S.sample(torch.tensor([[0.0, 0.0], bad]), torch.full((2,), 0.5))
    for u in (-0.1, 1.1, math.nan):
        with pytest.raises(SettingError, match=r"uniform_B: .*give numbers in \[0, 1\)"):
            S.sample(torch.zeros(1, 3), torch.tensor([u]))
    with pytest.raises(SettingError, match=r"uniform_B: .*one number"):
        S.sample(torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(SettingError, match=r"logits_BV: .*floating-point"):
        S.sample(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2))


# Streams

GOLDEN = [0.7526634267328762, 0.06218149926637018, 0.17544436521992157]  # recorded with NumPy 2.4, x86-64


def test_a_stream_belongs_to_seed_key_and_sample_alone() -> None:
    stream = S.uniforms(7, "a prompt", 2, 50)
    np.random.seed(0)
    torch.manual_seed(0)
    S.uniforms(1, "another", 0, 10)
    assert np.array_equal(stream, S.uniforms(7, "a prompt", 2, 50))
    assert np.array_equal(stream[:9], S.uniforms(7, "a prompt", 2, 9))
    assert stream.dtype == np.float64 and stream.min() >= 0 and stream.max() < 1
    assert S.uniforms(7, "a prompt", 2, 0).shape == (0,)


def test_streams_of_neighbouring_triples_differ_and_are_uncorrelated() -> None:
    triples = [(s, k, i) for s in (0, 1, 11) for k in ("", "1", "1,2", "é") for i in (0, 1, 12)]
    triples += [(1, "1,x", 2), (1, "x", 21), (12, "1,x", 1), (-1, "", 0)]
    streams = np.stack([S.uniforms(*triple, 2000) for triple in triples])
    correlation = np.corrcoef(streams) - np.eye(len(triples))
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)
    assert np.abs(streams.mean(-1) - 0.5).max() < 5 * math.sqrt(1 / 12 / 2000)


def test_a_stream_is_the_same_in_every_process_and_version() -> None:
    assert S.uniforms(0, "a prompt", 3, 3).tolist() == GOLDEN


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(SettingError, match=r"n: -1.*count of 0 or more"):
        S.uniforms(0, "", 0, -1)
