"""The states behind the last tokens of rows [B, T] that are padded on the right with -1, as environments show them.

`last_states` reads any rows at once, with a gradient. A row that another one begins with is read as a part of that
one: the prefixes of a text, one for each of its tokens, cost one pass and not as many as there are tokens.

`PrefixCache` does the same where a gradient is formed; where none is, it reads rows that grow token by token from a KV
cache. The cache is a memo: it changes no state beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlgkd.errors import ModelError
from rlgkd.lm.encoder_decoder import EncoderDecoderModel
from rlgkd.lm.model import DecodeState, LanguageModel
from rlgkd.types import Batch


def last_states(lm: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """[B, H]: the state behind each row's last token, differentiable.

    Raises: ModelError for an encoder-decoder model: the rows do not tell where its prompts end.
    """
    if isinstance(lm, EncoderDecoderModel):
        raise ModelError("model", lm.module.config.model_type, "a row does not tell its prompt; give a causal model")
    rows_BT = tokens_BT.cpu().numpy()
    last_B = (rows_BT >= 0).sum(1) - 1
    width = int(last_B.max()) + 1
    rows_BT = rows_BT[:, :width]
    read, row_B = np.unique(_longest(rows_BT), return_inverse=True)
    tokens_RT = torch.from_numpy(rows_BT[read]).to(lm.device)
    # One column more: the state at a row's last token predicts what would stand behind it.
    tokens_RT = torch.nn.functional.pad(tokens_RT, (0, 1), value=-1)
    wanted_RT = np.zeros((len(read), width + 1), dtype=bool)
    wanted_RT[row_B, last_B + 1] = True
    place_RT = np.cumsum(wanted_RT).reshape(wanted_RT.shape) - 1
    states_NH = lm.states(
        Batch(
            tokens_BT=tokens_RT.clamp(min=0), attention_mask_BT=(tokens_RT >= 0).long(),
            action_mask_BT=torch.from_numpy(wanted_RT).to(lm.device), logp_BT=torch.zeros_like(tokens_RT).float(),
        )
    )  # fmt: skip
    return states_NH[torch.from_numpy(place_RT[row_B, last_B + 1]).to(lm.device)]


def _longest(rows_BT: np.ndarray) -> np.ndarray:
    """[B]: for each row the number of the longest one that begins with it (of equal ones the last in their order)."""
    order_B = np.lexsort(rows_BT.T[::-1])  # by the first token, then the second: a row stands before what it begins
    sorted_BT = rows_BT[order_B]
    begins_B = ((sorted_BT[:-1] == sorted_BT[1:]) | (sorted_BT[:-1] < 0)).all(1)
    last_B = np.append(np.where(begins_B, len(order_B), np.arange(len(order_B) - 1)), len(order_B) - 1)
    whole_B = np.empty_like(order_B)
    whole_B[order_B] = order_B[np.minimum.accumulate(last_B[::-1])[::-1]]
    return whole_B


@dataclass
class _Memo:
    tokens_BT: np.ndarray
    prompt_B: np.ndarray
    """Length of each row's prompt, which an encoder-decoder model needs: of what it held when it was first seen."""
    progress: DecodeState


class PrefixCache:
    """Reads the rows of an environment step by step: those that grew by one token go on, the others begin anew."""

    def __init__(self, lm: LanguageModel) -> None:
        """Read with this model."""
        self.lm = lm
        self.memo: _Memo | None = None

    def clear(self) -> None:
        """Drop the memo; call it when the weights have changed."""
        self.memo = None

    def last_states(self, tokens_BT: Tensor) -> Tensor:
        """[B, H]: the state behind each row's last token; all at once, without the memo, where gradients are formed."""
        if torch.is_grad_enabled():
            return last_states(self.lm, tokens_BT)
        return self._next_states(tokens_BT.cpu().numpy())

    def _next_states(self, tokens_BT: np.ndarray) -> Tensor:
        lm, memo, length_B = self.lm, self.memo, (tokens_BT >= 0).sum(1)
        rows = np.arange(len(tokens_BT))
        newest, before_BT = tokens_BT[rows, length_B - 1], tokens_BT.copy()
        before_BT[rows, length_B - 1] = -1
        goes_on_B, prompt_B = np.zeros(len(rows), dtype=bool), length_B
        if memo is not None and memo.tokens_BT.shape == tokens_BT.shape:
            goes_on_B = (memo.tokens_BT == before_BT).all(1)
            prompt_B = np.where(goes_on_B, memo.prompt_B, length_B)
        anew = np.flatnonzero(~goes_on_B)
        if memo is None or len(anew) == len(rows) or (len(anew) and not memo.progress.replaceable):
            state_BH, progress = self._read(tokens_BT, prompt_B, length_B)
        else:
            progress = memo.progress
            anew_R = torch.from_numpy(anew).to(lm.device)
            progress.attention_BT[anew_R] = 0  # they take part, so that the others stay in place, and are overwritten
            state_BH = lm.advance(torch.from_numpy(newest).to(lm.device), progress)
            if len(anew):
                state_BH[anew_R], others = self._read(tokens_BT[anew], prompt_B[anew], length_B[anew])
                progress.replace(anew_R, others)
        self.memo = _Memo(tokens_BT=tokens_BT.copy(), prompt_B=prompt_B, progress=progress)
        return state_BH

    def _read(self, tokens_BT: np.ndarray, prompt_B: np.ndarray, length_B: np.ndarray) -> tuple[Tensor, DecodeState]:
        prompts, written = (
            [row[start:end].tolist() for row, start, end in zip(tokens_BT, starts, ends, strict=True)]
            for starts, ends in ((0 * prompt_B, prompt_B), (prompt_B, length_B))
        )
        return self.lm.prefill(prompts, written)
