"""Tokenizers for the tests of rewards that are models."""

from __future__ import annotations

import pytest
from reward_models import WORDS
from tiny import word_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokens() -> PreTrainedTokenizerFast:
    """Joins a pair as BERT does, one token a word: <s> first <t> second <t>; <end> is end and padding."""
    core = word_tokenizer(*WORDS).backend_tokenizer
    special = [(mark, core.token_to_id(mark)) for mark in ("<s>", "<t>")]
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <t> $B:1 <t>:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<end>",
        pad_token="<end>",
        cls_token="<s>",
        sep_token="<t>",
        model_max_length=24,
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return word_tokenizer(*WORDS)
