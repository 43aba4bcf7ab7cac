"""Evaluation: changes paired by prompt, and distances that agree with a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlgkd.envs.tasks.grounded.env import grounded_summary
from rlgkd.errors import SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel, load, load_tokenizer
from rlgkd.types import Batch


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return LanguageModel(load("embedded:grounded-student"), load_tokenizer("embedded:grounded-student"))


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return LanguageModel(load("embedded:grounded-teacher"), load_tokenizer("embedded:grounded-teacher"))


def test_a_policy_compared_with_itself_has_not_changed(student: LanguageModel, teacher: LanguageModel) -> None:
    first = evaluate(student, teacher, grounded_summary(), prompts=6)
    again = evaluate(student, teacher, grounded_summary(), prompts=6, batch_size=2)
    assert [t.text for t in first.trajectories] == [t.text for t in again.trajectories]
    for name, change in again.change_from(first).items():
        assert abs(change.mean) < 1e-5, name


def test_the_reverse_kl_is_that_of_a_slow_loop_and_zero_to_itself(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    result = evaluate(student, teacher, grounded_summary(), prompts=5)
    for row, written in enumerate(result.trajectories):
        batch = Batch.collate([written], pad=student.pad)
        with torch.no_grad():
            log_q = student.module(batch.tokens_BT).logits.double().log_softmax(-1)[0, :-1]
            log_p = teacher.module(batch.tokens_BT).logits.double().log_softmax(-1)[0, :-1]
        kl_T = (log_q.exp() * (log_q - log_p)).sum(-1)[batch.action_mask_BT[0, 1:]]
        assert result.measures["reverse_kl"][row] == pytest.approx(kl_T.mean().item(), rel=1e-4)
    own = evaluate(teacher, teacher, grounded_summary(), prompts=5)
    assert np.abs(own.measures["reverse_kl"]).max() < 1e-6


def test_prompts_of_other_items_are_not_compared(student: LanguageModel) -> None:
    some = evaluate(student, None, grounded_summary(), prompts=3)
    others = evaluate(student, None, grounded_summary(), prompts=3, split="validation")
    with pytest.raises(SettingError, match="same prompts"):
        some.change_from(others)
    with pytest.raises(SettingError, match="at least 1"):
        evaluate(student, None, grounded_summary(), prompts=0)


def test_a_group_keeps_the_first_sample_and_measures_all_of_them(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    one = evaluate(student, teacher, grounded_summary(), prompts=4)
    several = evaluate(student, teacher, grounded_summary(), prompts=4, group=4)
    assert [t.text for t in several.trajectories[::4]] == [t.text for t in one.trajectories]
    truths = np.array([quality["truth"] for quality in several.qualities]).reshape(4, 4)
    assert several.measures["truth"] == pytest.approx(truths.mean(axis=1))
    assert several.measures["truth@4"] == pytest.approx(truths.max(axis=1))
    assert {"self_bleu", "distinct1", "truth@2"} <= several.measures.keys() and "reward@2" not in several.measures
    assert "self_bleu" not in one.measures


def test_the_divergence_by_position_averages_to_that_of_the_text(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    found = evaluate(student, teacher, grounded_summary(), prompts=3)
    for name in ("reverse_kl", "reverse_kl_data"):
        assert np.nanmean(found.by_position[name], axis=1) == pytest.approx(found.measures[name])
    lengths = np.isfinite(found.by_position["reverse_kl"]).sum(axis=1)
    assert lengths.tolist() == found.measures["length"].tolist()


def test_the_forward_divergence_is_measured_on_request_and_changes_nothing_else(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    plain = evaluate(student, teacher, grounded_summary(), prompts=3, group=2)
    both = evaluate(student, teacher, grounded_summary(), prompts=3, group=2, forward_kl=True)
    assert both.measures.keys() - plain.measures.keys() == {"forward_kl", "forward_kl_data"}
    assert all((both.measures[name] == values).all() for name, values in plain.measures.items())
    # The other way round the roles change; the references' prefixes stay the same.
    swapped = evaluate(teacher, student, grounded_summary(), prompts=3)
    assert both.measures["forward_kl_data"] == pytest.approx(swapped.measures["reverse_kl_data"], rel=1e-5)
    assert both.measures["forward_kl"] != pytest.approx(both.measures["reverse_kl"], rel=1e-2)
    itself = evaluate(student, student, grounded_summary(), prompts=3, forward_kl=True).measures
    assert itself["forward_kl"] == pytest.approx(0.0, abs=1e-6)


def test_filters_choose_the_texts_and_the_divergence_is_of_the_whole_distributions(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    """With one token left each is certain, and of distributions so narrowed entropy would be 0."""
    greedy = evaluate(student, teacher, grounded_summary(), prompts=4, greedy=True)
    for filters in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        some = evaluate(student, teacher, grounded_summary(), prompts=4, **filters)  # type: ignore[arg-type]
        assert [t.text for t in some.trajectories] == [t.text for t in greedy.trajectories]
        assert all((t.logp_T == 0).all() for t in some.trajectories)
        for name in ("reverse_kl", "reverse_kl_data", "entropy"):
            assert some.measures[name] == pytest.approx(greedy.measures[name], abs=1e-6)
            assert (some.measures[name] > 0.01).all()
    with pytest.raises(SettingError, match="greedy: True does not work; the likeliest token passes every filter"):
        evaluate(student, None, grounded_summary(), prompts=1, greedy=True, top_k=3)
    with pytest.raises(SettingError, match="top_p: 0 does not work"):
        evaluate(student, None, grounded_summary(), prompts=1, top_p=0)
