"""The states after the last tokens of rows [B, T], which are padded on the right with -1 as environments show them.

`last_states` runs any rows at once, differentiably. A row that another row begins with is a part of that one's forward
pass: all prefixes of a text cost one pass over it.

`PrefixCache` does the same where a gradient is formed. Where none is, it runs rows that grow token by token against a
KV cache, which changes no state beyond rounding.

Dimensions: B rows, R rows that are run, T columns, N rows that restart, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlgkd.devices import to_device
from rlgkd.errors import ModelError
from rlgkd.lm.decode_state import DecodeState
from rlgkd.lm.encoder_decoder import EncoderDecoderModel
from rlgkd.lm.model import LanguageModel
from rlgkd.types import Batch


def last_states(lm: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """[B, H]: the state after each row's last token, differentiable.

    Raises: ModelError for an encoder-decoder model, since a row does not show where its prompt ends.
    """
    if isinstance(lm, EncoderDecoderModel):
        remedy = "a row does not show where its prompt ends; give a causal model"
        raise ModelError("model", lm.module.config.model_type, remedy)
    rows_BT = tokens_BT.cpu().numpy()
    last_B = (rows_BT >= 0).sum(1) - 1
    width = int(last_B.max()) + 1
    rows_BT = rows_BT[:, :width]
    run_R, run_index_B = np.unique(_longest_extensions(rows_BT), return_inverse=True)
    tokens_RT = to_device(rows_BT[run_R], lm.device)
    # One column more, for the action that the state after a row's last token predicts: `lm.states` wants actions.
    tokens_RT = torch.nn.functional.pad(tokens_RT, (0, 1), value=-1)
    action_RT = np.zeros((len(run_R), width + 1), dtype=bool)
    action_RT[run_index_B, last_B + 1] = True
    action_number_RT = np.cumsum(action_RT).reshape(action_RT.shape) - 1
    batch = Batch(
        tokens_BT=tokens_RT.clamp(min=0),
        attention_mask_BT=(tokens_RT >= 0).long(),
        action_mask_BT=to_device(action_RT, lm.device),
        logp_BT=torch.zeros_like(tokens_RT).float(),
    )
    states_NH = lm.states(batch)
    return states_NH[to_device(action_number_RT[run_index_B, last_B + 1], lm.device)]


def _longest_extensions(rows_BT: np.ndarray) -> np.ndarray:
    """[B]: for each row the longest row that begins with it (of equal ones the last in sorted order)."""
    order_B = np.lexsort(rows_BT.T[::-1])  # by the first token, then the second: a row comes before its extensions
    sorted_BT = rows_BT[order_B]
    is_prefix_B = ((sorted_BT[:-1] == sorted_BT[1:]) | (sorted_BT[:-1] < 0)).all(1)
    # In sorted order: the next row, from here on, that is no prefix of the one after it.
    candidates = np.where(is_prefix_B, len(order_B), np.arange(len(order_B) - 1))
    extension_B = np.append(candidates, len(order_B) - 1)
    extension_B = np.minimum.accumulate(extension_B[::-1])[::-1]
    longest_B = np.empty_like(order_B)
    longest_B[order_B] = order_B[extension_B]
    return longest_B


@dataclass
class _CachedRows:
    tokens_BT: np.ndarray
    prompt_B: np.ndarray
    """The length of each row when it was first seen: its prompt's, which an encoder-decoder model needs."""
    state: DecodeState


class PrefixCache:
    """Runs the rows of an environment step by step: rows that grew by one token continue, the others start again."""

    def __init__(self, lm: LanguageModel) -> None:
        """Begin empty."""
        self.lm = lm
        self.cached: _CachedRows | None = None

    def clear(self) -> None:
        """Drop what is cached; call it when the weights have changed."""
        self.cached = None

    def last_states(self, tokens_BT: Tensor) -> Tensor:
        """[B, H]: the state after each row's last token; without the cache where gradients are formed."""
        if torch.is_grad_enabled():
            return last_states(self.lm, tokens_BT)
        return self._cached_states(tokens_BT.cpu().numpy())

    def _cached_states(self, tokens_BT: np.ndarray) -> Tensor:
        lm = self.lm
        cached = self.cached
        length_B = (tokens_BT >= 0).sum(1)
        rows = np.arange(len(tokens_BT))
        newest_B = tokens_BT[rows, length_B - 1]
        before_BT = tokens_BT.copy()
        before_BT[rows, length_B - 1] = -1
        continues_B = np.zeros(len(rows), dtype=bool)
        prompt_B = length_B
        if cached is not None and cached.tokens_BT.shape == tokens_BT.shape:
            continues_B = (cached.tokens_BT == before_BT).all(1)
            prompt_B = np.where(continues_B, cached.prompt_B, length_B)
        restart_N = np.flatnonzero(~continues_B)
        if cached is None or len(restart_N) == len(rows) or (len(restart_N) and not cached.state.can_replace_rows):
            state_BH, state = self._prefill(tokens_BT, prompt_B, length_B)
        else:
            state = cached.state
            restart_index_N = to_device(restart_N, lm.device)
            # Rows that restart take part in the step, so that the others keep their index, and are then overwritten.
            # They see nothing of what was cached: a row at the end of the context would else step beyond it.
            state.attention_BT[restart_index_N] = 0
            state_BH = lm.advance(to_device(newest_B, lm.device), state)
            if len(restart_N):
                restarted = self._prefill(tokens_BT[restart_N], prompt_B[restart_N], length_B[restart_N])
                state_BH[restart_index_N], restarted_state = restarted
                state.replace_rows(restart_index_N, restarted_state)
        self.cached = _CachedRows(tokens_BT=tokens_BT.copy(), prompt_B=prompt_B, state=state)
        return state_BH

    def _prefill(self, tokens_BT: np.ndarray, prompt_B: np.ndarray, length_B: np.ndarray) -> tuple[Tensor, DecodeState]:
        prompts = [row[:prompt].tolist() for row, prompt in zip(tokens_BT, prompt_B, strict=True)]
        completions = [
            row[prompt:length].tolist() for row, prompt, length in zip(tokens_BT, prompt_B, length_B, strict=True)
        ]
        return self.lm.prefill(prompts, completions)
