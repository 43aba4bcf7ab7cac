"""Byte-level tokenizers with special tokens and chat templates, and small models of theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LIMITS = {"max_prompt_tokens": 96, "max_new_tokens": 6}
FEW = {"prompts_per_update": 2, "group_size": 2}


def no_reward(completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def tokenizer(eos: str = "<|im_end|>", *special: str, template: str | dict[str, str] | None = CHATML):
    """Of 256 bytes, then the end token and other special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, clean_up_tokenization_spaces=False)
    own.add_special_tokens({"additional_special_tokens": list(special or ("<|im_start|>",))})
    own.chat_template = template
    return own


def model(own: PreTrainedTokenizerFast, *, kind: str = "phi", seed: int = 0, writes: str = "") -> PreTrainedModel:
    """A random model; with `writes`, one that writes this token whatever stands before it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(own),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=None,
        )
        module = AutoModelForCausalLM.from_config(config).eval()
    if writes:
        with torch.no_grad():
            module.lm_head.bias.zero_()
            module.lm_head.bias[own.convert_tokens_to_ids(writes)] = 100.0
    return module


def folder(module: PreTrainedModel, own: PreTrainedTokenizerFast, path: Path) -> str:
    module.save_pretrained(path)
    own.save_pretrained(path)
    return str(path)
