"""A tokenizer of some fifty tokens, a task with a reward in parts, and an id registered for them: no assets needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlgkd.envs import TextTask
from rlgkd.lm import LanguageModel
from rlgkd.types import Score

PROMPTS = ("see a dog", "see the cat", "a red house", "the dog", "house", "the red cat and a dog", "cat")
LIMITS = {"max_prompt_tokens": 12, "max_new_tokens": 10}


def vowels(completions: Sequence[str], prompts: Sequence[str]) -> list[Score]:
    """Share of vowels, less what was copied: a reward of two parts, neither of them whole numbers."""
    scores = []
    for completion, prompt in zip(completions, prompts, strict=True):
        open_ = sum(letter in "aeiou" for letter in completion) / 7
        copied = len(set(completion) & set(prompt)) / 11
        scores.append(Score(reward=open_ - copied, parts={"open": open_, "copied": copied}))
    return scores


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few letters and signs; vocabulary small enough that random models often end a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|bot|>"]
    trainer = trainers.BpeTrainer(vocab_size=52, special_tokens=special, initial_alphabet=[], show_progress=False)
    bpe.train_from_iterator([*PROMPTS, *(f" {text}" for text in PROMPTS), "<|end|>user bot pad\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|bot|>"],
        clean_up_tokenization_spaces=False,
        chat_template="{% for m in messages %}<|user|>\n{{ m['content'] }}<|end|>\n{% endfor %}<|bot|>",
    )


@pytest.fixture(scope="session")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer on disk, next to a model's config."""
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def env_id(folder: str) -> str:
    """A registered environment; its settings are what Gymnasium copies: names, numbers, a function."""
    settings = {"prompts": PROMPTS, "reward": vowels, "tokenizer": folder, **LIMITS}
    gym.register(
        id="tiny/Vowels-v0",
        entry_point="rlgkd.envs.text_env:TextGenerationEnv",
        vector_entry_point="rlgkd.envs.vector_env:TextVectorEnv",
        kwargs=settings,
    )
    return "tiny/Vowels-v0"


@pytest.fixture
def make_task(tokenizer: PreTrainedTokenizerFast) -> Callable[..., TextTask]:
    """Makes the tiny task; settings given override its own."""

    def make(**settings: Any) -> TextTask:
        return TextTask(**{"prompts": PROMPTS, "reward": vowels, "tokenizer": tokenizer, **LIMITS, **settings})

    return make


@pytest.fixture
def task(make_task: Callable[..., TextTask]) -> TextTask:
    return make_task()


@pytest.fixture(scope="session")
def lm(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random model whose distributions are far from even."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LanguageModel(LlamaForCausalLM(config), tokenizer)
