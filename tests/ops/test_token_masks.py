"""Masks are functions of the tokens: what they allow, that they are checked, and that nothing else is sampled."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rlgkd.errors import SettingError
from rlgkd.ops.sampling import sample
from rlgkd.ops.token_masks import allowed, allowed_tokens, masked, transitions

END, ONE, TWO, DOT, COLON, OTHER = range(6)
TABLE = {
    "begin": {ONE: "whole", TWO: "whole"},
    "whole": {ONE: "whole", TWO: "whole", DOT: "point"},
    "point": {ONE: "fraction", TWO: "fraction"},
    "fraction": {ONE: "fraction", TWO: "fraction"},
}


def number(**changed):
    """A number such as 12.1, after a colon."""
    given = {"start": "begin", "accepting": ["whole", "fraction"], "prompt_end": COLON, "vocabulary": 6, "end": END}
    return transitions(changed.pop("table", TABLE), **given | changed)


def rows(*tokens, width=9):
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in tokens])


def test_a_fixed_set_is_allowed_behind_everything_and_the_end_token_as_was_said():
    assert allowed([1, 3], vocabulary=5, end=0)(rows([1], [2, 2])).tolist() == [[True, True, False, True, False]] * 2
    assert allowed([1, 3], vocabulary=5, end=None)(rows([1])).tolist() == [[False, True, False, True, False]]
    assert allowed([1, 0], vocabulary=5, end=None)(rows([1])).sum() == 2


def test_an_automaton_allows_what_its_state_allows_and_the_end_where_it_accepts():
    mask = number()
    prompt = [DOT, COLON, OTHER, COLON]  # what stands before the last colon is the prompt's own
    for written, expected in (
        ([], {ONE, TWO}),
        ([ONE], {ONE, TWO, DOT, END}),
        ([ONE, TWO, DOT], {ONE, TWO}),
        ([ONE, DOT, TWO], {ONE, TWO, END}),
    ):
        (allowed_V,) = mask(rows([*prompt, *written]))
        assert set(allowed_V.nonzero()[:, 0].tolist()) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=12, max_size=12), st.integers(0, 2**31))
def test_what_is_sampled_under_a_grammar_is_of_its_language(uniforms, seed):
    generator, mask, tokens = torch.Generator().manual_seed(seed), number(), [OTHER, COLON]
    for uniform in uniforms:
        tokens_BT = rows(tokens, width=16)
        logits_BV = masked(torch.randn(1, 6, generator=generator), allowed_tokens(mask, tokens_BT, 6))
        tokens.append(int(sample(logits_BV, torch.tensor([uniform]))[0]))
        if tokens[-1] == END:
            break
    text = "".join("e12.:x"[token] for token in tokens[2:])
    assert re.fullmatch(r"[12]+(\.[12]+)?e" if text.endswith("e") else r"[12]+(\.[12]*)?", text)


def test_a_masked_distribution_shares_out_what_was_forbidden_and_its_gradient_is_finite():
    logits_BV = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    p_BV = masked(logits_BV, torch.tensor([[True, False, True]])).softmax(-1)
    torch.testing.assert_close(p_BV, torch.tensor([[1.0, 0.0, 3.0]]).where(p_BV > 0, -torch.inf).softmax(-1))
    p_BV[0, 0].backward()
    assert logits_BV.grad.isfinite().all() and logits_BV.grad[0, 1] == 0 and logits_BV.grad[0, 0] > 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda t: torch.zeros(2, 6).bool(), r"\[1, 5\].*allows nothing after these tokens"),
        (lambda t: torch.ones(2, 6), r"float32 of shape \(2, 6\).*bools of shape \(2, 6\)"),
        (lambda t: torch.ones(2, 5).bool(), r"shape \(2, 5\)"),
        (number(), r"prompt_end: 4 .*no such token in the row \[1, 5\]"),
    ],
)
def test_a_mask_that_does_not_do_is_an_error_that_says_why(mask, message):
    with pytest.raises(SettingError, match=message):
        allowed_tokens(mask, rows([1, 5], [4]), 6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": "nowhere"}, "nowhere"),
        ({"accepting": ["nowhere"]}, "nowhere"),
        ({"accepting": []}, "end: 0"),
        ({"end": None}, "end: None"),
        ({"table": {**TABLE, "begin": {9: "whole"}}}, r"transitions: 9 .*\[0, 5\]"),
        ({"table": {**TABLE, "begin": {ONE: "lost"}}}, "lost"),
        ({"table": {**TABLE, "begin": {COLON: "whole"}}}, "leave 4 and 0"),
        ({"table": {**TABLE, "begin": {END: "whole"}}}, "leave 4 and 0"),
        ({"table": {**TABLE, "point": {}}}, "point.*allows nothing"),
    ],
)
def test_an_automaton_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(SettingError, match=message):
        number(**changed)


def test_a_text_that_the_grammar_does_not_allow_is_an_error_not_a_guess():
    with pytest.raises(SettingError, match=r"3 .*not allowed in the state begin"):
        number()(rows([COLON, DOT]))


def test_sets_outside_the_vocabulary_and_empty_ones_are_refused():
    for ids, end in (([6], 0), ([-1], 0), ([1], 6), ([], 0)):
        with pytest.raises(SettingError):
            allowed(ids, vocabulary=6, end=end)
