"""The models that the hand-written Llama code takes, and those that it leaves to their own forward pass."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from rlgkd.lm.fast import supported

TOKENIZER = tiny.word_tokenizer(*[f"w{n}" for n in range(30)])


@pytest.mark.parametrize("kind", ["gpt2", "changed", "autocast", "bfloat16", "double", "window"])
def test_the_forward_pass_supports_plain_llama_models_in_float32_alone(kind):
    lm = tiny.family(
        "gpt2" if kind == "gpt2" else "mistral", TOKENIZER, **({"sliding_window": 4} if kind == "window" else {})
    )
    if kind == "changed":
        lm.body.layers[0].mlp.up_proj = nn.Sequential(lm.body.layers[0].mlp.up_proj)
    if kind in ("bfloat16", "double"):
        lm.module.to(getattr(torch, kind))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        assert not supported(lm.body, "forward")


class Adapted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1.0


def test_decoding_supports_no_changed_layer_and_no_window():
    lm = tiny.family("llama", TOKENIZER)
    lm.body.layers[0].mlp.up_proj = Adapted(16, 32, bias=False)
    assert not supported(lm.module, "decode")
    assert not supported(tiny.family("mistral", TOKENIZER, sliding_window=4).module, "decode")
    assert not supported(tiny.family("llama", TOKENIZER, hidden_act="gelu").module, "decode")
