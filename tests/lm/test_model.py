"""The language model as a policy: its actions, its states, and the models that it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import LanguageModel, check_same_vocabulary
from rlgkd.types import Batch, Item, Score, Source, StopReason, Trajectory

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def trajectory(tokens, prompt: int) -> Trajectory:
    return Trajectory(
        item=Item(key="", prompt=""),
        tokens_T=np.array(tokens),
        action_mask_T=np.arange(len(tokens)) >= prompt,
        logp_T=np.zeros(len(tokens), dtype=np.float32),
        entropy_T=np.zeros(len(tokens)),
        stop=StopReason.END,
        source=Source.STUDENT,
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


def test_the_end_token_is_an_action_even_if_it_is_the_padding_too():
    lm = LanguageModel(tiny.model(vocabulary=4), TOKENIZER)
    assert lm.end == lm.pad == 0
    batch = Batch.collate([trajectory([1, 2, 0], 1), trajectory([1, 2, 3, 3, 0], 2)], pad=lm.pad)
    assert lm.actions(batch).tolist() == [2, 0, 3, 3, 0]
    lm.logits(lm.states(batch))[1].logsumexp(-1).backward()
    assert lm.head.weight.grad.abs().sum() > 0


def test_a_state_predicts_the_next_token():
    lm = LanguageModel(tiny.model(vocabulary=4), TOKENIZER)
    with torch.no_grad():
        states_NH = lm.states(Batch.collate([trajectory([3, 1, 2, 0], 2)], pad=0))
        expected = lm.module(torch.tensor([[3, 1, 2]])).logits[0, 1:]
        torch.testing.assert_close(lm.logits(states_NH), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_its_name(name, value):
    """Whichever check it fails: what infinity makes of the logits looks like an unknown architecture."""
    module = tiny.model(vocabulary=4)
    with torch.no_grad():
        module.get_parameter(name)[0] = value
    with pytest.raises(ModelError, match=rf"its weights {name} are not finite"):
        LanguageModel(module, TOKENIZER)


def test_a_head_with_an_infinite_weight_is_refused_by_its_name():
    module = tiny.family("phi", TOKENIZER).module  # whose head is not tied to its embeddings
    with torch.no_grad():
        module.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"its weights lm_head\.weight are not finite"):
        LanguageModel(module, TOKENIZER)


def test_a_model_whose_logits_are_more_than_a_linear_head_is_refused():
    with pytest.raises(ModelError, match="not a linear head"):
        tiny.family("hyperclovax", TOKENIZER, logits_scaling=2.0)  # a factor, which other families divide by


def test_a_head_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(ModelError, match="3 entries but the tokenizer has 4"):
        LanguageModel(tiny.model(vocabulary=3), TOKENIZER)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(SettingError, match="temperature"):
        LanguageModel(tiny.model(vocabulary=4), TOKENIZER, temperature=temperature)


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = tiny.word_tokenizer("A", "B", "C")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        LanguageModel(tiny.model(vocabulary=4), tokenizer)


def test_dropout_stays_off():
    module = tiny.model("gpt2", vocabulary=4).train()
    assert not LanguageModel(module, TOKENIZER).module.training


def test_another_vocabulary_is_refused_and_the_difference_named():
    check_same_vocabulary(TOKENIZER, tiny.word_tokenizer("A", "B", "C"))
    with pytest.raises(ModelError) as caught:
        check_same_vocabulary(TOKENIZER, tiny.word_tokenizer("A", "C", "B", "D"))
    message = str(caught.value)
    assert "5 against 4 tokens, 3 differ, first 'B'" in message
    assert "\n" not in message
