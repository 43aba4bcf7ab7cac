"""Incremental decoders with a KV cache: the protocol, and the one that runs a model's own forward pass.

Models of the Llama family have a faster one, `rlgkd.lm.fast.decoder`; both generate the same tokens. Quantised models,
and others with changed layers, run their own forward pass.

Dimensions: B rows that are decoded, N rows that are added, P prompts, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlgkd.devices import to_device
from rlgkd.lm import fast
from rlgkd.lm.decode_state import DecodeState
from rlgkd.lm.model import LanguageModel


class Decoder(Protocol):
    """Rows of tokens that grow by one token a step; rows may leave, and others join them."""

    @property
    def can_add_rows(self) -> bool:
        """Whether rows can be added while others are being decoded."""
        ...

    def add_rows(self, prompts: Sequence[Sequence[int]], prompt_N: np.ndarray) -> None:
        """Prefill each prompt once, and append a row for each entry of `prompt_N`, the index of its prompt."""
        ...

    def logits(self) -> Tensor:
        """[B, V]: logits of each row's next token, at the policy's temperature."""
        ...

    def step(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        ...

    def keep_rows(self, rows: np.ndarray, *, final: bool) -> None:
        """Drop all rows but these; `final` says that none will be added any more."""
        ...


def make_decoder(lm: LanguageModel, rows: int, size: int) -> Decoder:
    """Return a decoder of at most `rows` rows at a time, none longer than `size` tokens with its prompt."""
    return fast.decoder(lm, rows, size) if fast.supported(lm.module, "decode") else HuggingFaceDecoder(lm)


class HuggingFaceDecoder:
    """Decodes with the model's own forward pass."""

    def __init__(self, lm: LanguageModel) -> None:
        """Begin without rows."""
        self.lm = lm
        self.state_BH: Tensor | None = None
        self.decode_state: DecodeState | None = None

    @property
    def can_add_rows(self) -> bool:
        """Whether the cache's rows can be replaced."""
        return self.decode_state is not None and self.decode_state.can_replace_rows

    def add_rows(self, prompts: Sequence[Sequence[int]], prompt_N: np.ndarray) -> None:
        """See `Decoder.add_rows`."""
        state_PH, decode_state = self.lm.prefill(prompts)
        prompt_index_N = to_device(prompt_N, self.lm.device)
        decode_state.keep_rows(prompt_index_N)
        if self.decode_state is None or self.state_BH is None or not len(self.state_BH):
            self.state_BH = state_PH[prompt_index_N]
            self.decode_state = decode_state
            return
        self.state_BH = torch.cat([self.state_BH, state_PH[prompt_index_N]])
        # transformers' caches cannot append rows: repeat the last one as often as needed, and overwrite the copies.
        row_B = torch.arange(len(self.state_BH), device=self.lm.device)
        self.decode_state.keep_rows(row_B.clamp(max=len(row_B) - len(prompt_index_N) - 1))
        self.decode_state.replace_rows(row_B[-len(prompt_index_N) :], decode_state)

    def logits(self) -> Tensor:
        """See `Decoder.logits`."""
        assert self.state_BH is not None
        return self.lm.logits(self.state_BH)

    def step(self, token_B: Tensor) -> None:
        """See `Decoder.step`."""
        assert self.decode_state is not None
        self.state_BH = self.lm.advance(token_B, self.decode_state)

    def keep_rows(self, rows: np.ndarray, *, final: bool) -> None:
        """See `Decoder.keep_rows`."""
        assert self.state_BH is not None and self.decode_state is not None
        row_B = to_device(rows, self.lm.device)
        self.state_BH = self.state_BH[row_B]
        self.decode_state.keep_rows(row_B)
