"""Tiny models and sentence pairs for the tests of rewards that are models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "premise:",
    "hypothesis:",
    "a",
    "red",
    "dog",
    "cat",
    "sat",
    "the",
    "1",
    "0",
    "yes",
    "no",
    "right?",
    "<s>",
    "<t>",
]
PREMISES = ["the red dog sat", "a cat", "", "the cat sat the cat sat the cat sat a dog", "red", "the dog"]
HYPOTHESES = ["a dog sat", "the cat sat the dog", "a dog", "red", "the cat sat", "dog"]
LABELS = {0: "Contradiction", 1: "ENTAILMENT", 2: "neutral"}
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
STRONG = {"initializer_range": 0.5}  # far from even


def seeded(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def classifier(labels: dict[int, str] = LABELS, **settings: Any) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=16, id2label=labels, max_position_embeddings=40, pad_token_id=0, **NARROW, **STRONG, **settings
    )
    return seeded(lambda: BertForSequenceClassification(config))


def llama(kind: Any, **settings: Any) -> PreTrainedModel:
    shape = {"vocab_size": 16, "max_position_embeddings": 64, "num_key_value_heads": 1, **NARROW, **STRONG}
    given = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, **settings}
    return seeded(lambda: kind(LlamaConfig(**shape, **given)))


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Sequence[int], types: Sequence[int] = (), **more: Any) -> torch.Tensor:
    typed = {"token_type_ids": torch.tensor([types])} if types else {}
    return model(input_ids=torch.tensor([ids]), **typed, **more).logits[0]


def pair_ids(tokens: PreTrainedTokenizerFast, premise: str, hypothesis: str) -> tuple[list[int], list[int]]:
    begin, part = tokens.convert_tokens_to_ids(["<s>", "<t>"])
    first, second = (tokens.convert_tokens_to_ids(text.split()) for text in (premise, hypothesis))
    return [begin, *first, part, *second, part], [0] * (len(first) + 2) + [1] * (len(second) + 1)
