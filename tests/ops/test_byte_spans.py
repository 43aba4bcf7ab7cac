"""Spans of two tokenisations: cases by hand, and that they are the finest partition for any pair of tokenisations."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlgkd.objective import Actions, Objective
from rlgkd.ops import policy_loss
from rlgkd.ops.byte_spans import cut_spans, known_spans

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def lists(*arrays) -> list[list[int]]:
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize(
    ("ours", "theirs", "spans"),
    [
        ([3], [3], ([0], [0])),
        ([1, 2, 3], [3, 1, 2], ([0, 0, 1], [0, 1, 1])),  # a|bc|def, abc|d|ef
        ([2, 2], [1, 2, 1], ([0, 0], [0, 0, 0])),  # ab|cd, a|bc|d
        ([1, 1, 1], [1, 1, 1], ([0, 1, 2], [0, 1, 2])),
        ([0, 2, 0, 1], [2, 1, 0], ([0, 0, 0, 1], [0, 1, 1])),  # what has no bytes joins what is before it
        ([0, 0], [0], ([0, 0], [0])),
    ],
)
def test_spans_end_where_both_end_a_token(ours, theirs, spans) -> None:
    assert lists(*cut_spans(ours, theirs)) == list(map(list, spans))


@given(SIZES, SIZES)
def test_spans_partition_the_text_and_no_finer_ones_do(ours, theirs) -> None:
    short = sum(ours) - sum(theirs)
    ours, theirs = (ours, [*theirs, short]) if short > 0 else ([*ours, -short], theirs)
    spans = cut_spans(ours, theirs)
    sizes = [np.bincount(span, weights=size) for span, size in zip(spans, (ours, theirs), strict=True)]
    assert np.array_equal(*sizes)  # the same bytes on both sides, and each byte once
    for span in spans:  # numbered in order, each with a token
        assert span[0] == 0 and set(np.diff(span).tolist()) <= {0, 1} and span[-1] == len(sizes[0]) - 1
    ends = [set(itertools.accumulate(size)) for size in (ours, theirs)]
    assert len(sizes[0]) == max(1, len((ends[0] & ends[1]) - {0}))


@pytest.mark.parametrize(("ours", "theirs"), [([1], [2]), ([], [1]), ([0], [])])
def test_tokenisations_of_other_bytes_have_no_spans(ours, theirs) -> None:
    with pytest.raises(ValueError, match="the other"):
        cut_spans(ours, theirs)
    assert lists(*cut_spans([], [])) == [[], []]


def actions(logp_N: torch.Tensor) -> Actions:
    zeros_N, ones_N = torch.zeros_like(logp_N), torch.ones_like(logp_N)
    return Actions(
        token_N=torch.arange(len(logp_N)),
        old_logp_N=logp_N,
        advantage_N=zeros_N,
        policy_weight_N=zeros_N,
        divergence_weight_N=ones_N,
        future_N=zeros_N,
        policy_gate_N=ones_N,
        divergence_gate_N=ones_N,
    )


@pytest.mark.parametrize(
    ("estimator", "slope"), [("sampled", lambda d: -d), ("k2", lambda d: -d), ("k3", lambda d: 1 - d.exp())]
)
def test_a_token_answers_for_the_whole_of_its_span(estimator, slope) -> None:
    """By hand: spans of two, one and one tokens; the loss's slope in log p_S of a token is that in the span's."""
    logits_NV = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    written_N = logits_NV.log_softmax(-1)[range(4), range(4)]
    logp_N = written_N.detach()
    span_N = torch.tensor([0, 0, 1, 2])
    known = known_spans(
        torch.tensor([-1.0, -2.5, -0.5, -3.0], dtype=torch.float64), torch.tensor([0, 1, 1, 2]), logp_N, span_N, 3
    )
    d_S = torch.tensor([-1.0, -3.0, -3.0], dtype=torch.float64) - torch.stack([logp_N[:2].sum(), logp_N[2], logp_N[3]])
    loss, records = Objective(alpha=1.0, estimator=estimator).loss(logits_NV, known, actions(logp_N))
    (slopes_NV,) = torch.autograd.grad(loss, logits_NV, retain_graph=True)
    (expected_NV,) = torch.autograd.grad((slope(d_S)[span_N] * written_N).sum(), logits_NV)
    torch.testing.assert_close(slopes_NV, expected_NV)
    torch.testing.assert_close(records["divergence"], -d_S[span_N] / torch.tensor([2.0, 2.0, 1.0, 1.0]))
    assert records["divergence"].sum().item() == pytest.approx(logp_N.sum().item() + 7.0)


@pytest.mark.parametrize("gap", [{}, {"gap": "clip", "gap_bound": 0.5}, {"gap": "power"}])
def test_spans_of_one_token_are_the_plain_signal_to_the_bit(gap) -> None:
    logits_NV = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher_NV = torch.randn(64, 9, generator=torch.Generator().manual_seed(1))
    token_N = torch.arange(64) % 9
    old_N, own_N = (policy_loss.log_probability(x, token_N).detach() for x in (logits_NV, teacher_NV))
    written = dataclasses.replace(actions(old_N), token_N=token_N)
    span_N = torch.arange(64)
    objective = Objective(alpha=1.0, estimator="sampled", **gap)
    found = []
    for teacher in (teacher_NV, known_spans(own_N, span_N, old_N, span_N, 64)):
        loss, records = objective.loss(logits_NV, teacher, written)
        found.append([torch.autograd.grad(loss, logits_NV)[0], records["divergence"], loss])
    assert all(torch.equal(plain, by_spans) for plain, by_spans in zip(*found, strict=True))


def test_over_all_texts_of_a_span_the_expected_gradient_is_that_of_the_kl_of_its_bytes() -> None:
    """Texts of two of the student's tokens that are one span: KL(p_S || p_T) over texts, none of it left out."""
    generator = torch.Generator().manual_seed(0)
    first_V = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    second_VV = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_VV = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0).view(3, 3)
    parameters = [first_V, second_VV]
    logp_VV = first_V.log_softmax(0)[:, None] + second_VV.log_softmax(1)
    exact = torch.autograd.grad((logp_VV.exp() * (logp_VV - teacher_VV)).sum(), parameters)
    expected = [torch.zeros_like(p) for p in parameters]
    mean = 0.0
    for one, other in itertools.product(range(3), repeat=2):
        logits_NV = torch.stack([first_V, second_VV[one]])
        token_N = torch.tensor([one, other])
        logp_N = policy_loss.log_probability(logits_NV, token_N).detach()
        span_N = torch.zeros(2, dtype=torch.int64)
        known = known_spans(teacher_VV[one, other][None], span_N[:1], logp_N, span_N, 1)
        written = dataclasses.replace(actions(logp_N), token_N=token_N)
        loss, records = Objective(alpha=1.0, estimator="sampled").loss(logits_NV, known, written)
        probability = logp_N.sum().exp()
        mean += probability * records["divergence"].sum()
        for total, slope in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
            total += probability * slope
    for found, wanted in zip(expected, exact, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mean, (logp_VV.exp() * (logp_VV - teacher_VV)).sum().detach())
