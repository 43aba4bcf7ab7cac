"""The mask of a frozen model's k likeliest tokens."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from rlgkd.errors import SettingError
from rlgkd.lm.top_k_mask import top_k_mask

TOKENIZER = tiny.word_tokenizer("A", "B", "C", "D", "E")
ROWS = torch.tensor([[1, 2, -1, -1], [3, 4, 5, -1], [1, -1, -1, -1]])


def frozen():
    return tiny.model(vocabulary=6).requires_grad_(False)


@pytest.mark.parametrize("k", [1, 3, 6, 100])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_models_k_likeliest_tokens_and_the_end_are_allowed(k, gradients):
    module = frozen()
    with torch.set_grad_enabled(gradients):
        allowed_BV = top_k_mask(module, k, tokenizer=TOKENIZER)(ROWS)
    for row, allowed_V in zip(ROWS, allowed_BV, strict=True):
        likeliest = module(row[row >= 0][None]).logits[0, -1].topk(min(k, 6)).indices.tolist()
        assert set(allowed_V.nonzero()[:, 0].tolist()) == {0, *likeliest}
    without = top_k_mask(module, k, tokenizer=TOKENIZER, keep_end=False)(ROWS)
    assert (without.sum(1) == min(k, 6)).all()


def test_every_end_token_of_the_model_is_allowed():
    words = tiny.word_tokenizer("A", "B", "C", "D", "E")
    words.add_special_tokens({"additional_special_tokens": ["D", "E"]})
    module = frozen()
    module.generation_config.eos_token_id = [0, 4, 5]
    allowed_BV = top_k_mask(module, 1, tokenizer=words)(ROWS)
    assert allowed_BV[:, [0, 4, 5]].all() and (allowed_BV.sum(1) <= 4).all()


def test_a_model_that_can_move_is_refused():
    module = tiny.model(vocabulary=6)
    with pytest.raises(SettingError, match="it can move; give a frozen copy"):
        top_k_mask(module, 2, tokenizer=TOKENIZER)
    top_k_mask(copy.deepcopy(module).requires_grad_(False), 2, tokenizer=TOKENIZER)
    with pytest.raises(SettingError, match="k: 0"):
        top_k_mask(frozen(), 0, tokenizer=TOKENIZER)
    with pytest.raises(SettingError, match="tokenizer"):
        top_k_mask(frozen(), 2)
