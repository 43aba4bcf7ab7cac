"""The Llama family written out by hand: faster than its transformers code, with the same results up to rounding.

This module is the package's only door; other rooms import nothing below it. Ask `supported` first; where it says no,
the model's own forward pass does the work (rlgkd.lm.model, rlgkd.lm.decoders). docs/internals.md says which of them
runs when.
"""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedModel

from rlgkd.lm.fast import support
from rlgkd.lm.fast.llama import forward
from rlgkd.lm.fast.llama_decoder import DecodedModel, LlamaDecoder
from rlgkd.lm.fast.packed import PackedTokens

__all__ = ["DecodedModel", "LlamaDecoder", "PackedTokens", "decoder", "forward", "supported"]


def supported(module: PreTrainedModel, use: Literal["forward", "decode"]) -> bool:
    """Return whether `forward`, or `decoder`, can run the model, given with or without its head.

    Both take LoRA. `forward` wants float32 on a CPU; `decoder` takes any device and precision.
    """
    return support.can_decode(module) if use == "decode" else support.can_forward(module)


def decoder(lm: DecodedModel, rows: int, size: int) -> LlamaDecoder:
    """Return a decoder of at most `rows` rows at a time, none longer than `size` tokens with its prompt."""
    return LlamaDecoder(lm, rows, size)
