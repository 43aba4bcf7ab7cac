"""T5 and its family as a policy: the encoder sees the prompt, the decoder generates the completion.

The rest of the project sees one token sequence, prompt then completion, as with a causal model. The split is made
here: the prompt is everything before the first action, and the encoder gets it with the end token appended, as T5 was
trained; the decoder begins with its start token, so that here too the state at position t-1 predicts token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.devices import to_device
from rlgkd.errors import DataError, ModelError
from rlgkd.lm.attention_mask import additive_mask
from rlgkd.lm.decode_state import DecodeState, cache_argument, left_padded
from rlgkd.lm.linear import onednn_linears
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import LanguageModel
from rlgkd.types import Batch, RowLayout, action_rows

FAMILIES = ("t5", "mt5", "umt5")
"""Architectures with relative positions alone: with absolute ones, left padding would count as positions."""


def language_model(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 1.0,
    rows_at_once: int | None = None,
    compile_decoding: bool = False,
    vocabulary: int | None = None,
) -> LanguageModel:
    """Wrap a loaded model, causal or encoder-decoder. Arguments and errors: see `LanguageModel`."""
    kind = EncoderDecoderModel if module.config.is_encoder_decoder else LanguageModel
    return kind(
        module,
        tokenizer,
        temperature=temperature,
        rows_at_once=rows_at_once,
        compile_decoding=compile_decoding,
        vocabulary=vocabulary,
    )


def open_by_name(
    name: str,
    *,
    temperature: float = 1.0,
    rows_at_once: int | None = None,
    compile_decoding: bool = False,
    vocabulary: int | None = None,
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """Open a model of either kind with its own tokenizer. Arguments and errors: see `load` and `LanguageModel`."""
    return language_model(
        load(name, merge_adapters=True, device=device),
        load_tokenizer(name),
        temperature=temperature,
        rows_at_once=rows_at_once,
        compile_decoding=compile_decoding,
        vocabulary=vocabulary,
    )


class EncoderDecoderModel(LanguageModel):
    """A Hugging Face model of the T5 family with its tokenizer and its temperature."""

    def states_and_head(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `LanguageModel.states_and_head`. Raises: DataError unless each row's actions are one block at its end."""
        batch = batch.to(self.device)  # a teacher may be elsewhere than its student
        layouts_B = batch.layouts_B or _layouts(batch)
        if any(len(layout.actions) != layout.length - layout.prompt for layout in layouts_B):
            raise DataError("trajectory", "several turns", "an encoder reads one prompt; use a causal model for these")
        # What follows from the layouts is worked out on the host, which then waits for nothing.
        prompt_B = np.array([layout.prompt for layout in layouts_B])
        length_B = np.array([len(layout.actions) for layout in layouts_B])
        # The decoder's input, right-padded: the start token, then each row's actions but for the last.
        source_BL = prompt_B[:, None] + np.arange(max(1, length_B.max())) - 1
        source_BL = source_BL.clip(0, batch.tokens_BT.shape[1] - 1)
        tokens_BL = batch.tokens_BT.gather(1, to_device(source_BL, self.device))
        tokens_BL[:, 0] = self._start
        row_N = to_device(action_rows(layouts_B), self.device)
        step_N = to_device(np.concatenate([np.arange(length) for length in length_B]), self.device)
        with onednn_linears(self.device):
            encoder_BTH, encoder_mask_B11T = self._encode(batch.tokens_BT[:, : prompt_B.max()], prompt_B)
            # Without a mask of its own: padding comes last, where no token sees it.
            output = self.module.get_decoder()(
                input_ids=tokens_BL,
                encoder_hidden_states=encoder_BTH,
                encoder_attention_mask=encoder_mask_B11T,
                use_cache=False,
            )
        return self._scaled(output.last_hidden_state.to(self.device))[row_N, step_N], self.head.weight

    def prefill(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, DecodeState]:
        """See `LanguageModel.prefill`."""
        rows = [[self._start, *completion] for completion in completions or [()] * len(prompts)]
        tokens_PT, attention_PT = left_padded(rows, pad=self.pad, device=self.device)
        prompt_P = np.array([len(prompt) for prompt in prompts])
        prompts_PT = np.full((len(prompts), prompt_P.max()), self.pad)
        for row, prompt in enumerate(prompts):
            prompts_PT[row, : len(prompt)] = prompt
        cache = EncoderDecoderCache(DynamicCache(config=self.module.config), DynamicCache(config=self.module.config))
        with onednn_linears(self.device):
            encoded = self._encode(to_device(prompts_PT, self.device), prompt_P)
            padded = len({len(row) for row in rows}) > 1
            state = DecodeState(cache, attention_PT[:, :0], *encoded, padded=padded)  # nothing is cached yet
            return self._extend(tokens_PT, attention_PT, state), state

    def _extend(self, tokens_BT: Tensor, attention_BT: Tensor, state: DecodeState) -> Tensor:
        state.attention_BT = torch.cat([state.attention_BT, attention_BT], dim=1)
        mask_B1TT = None
        if state.padded:
            column_T = torch.arange(state.attention_BT.shape[1], device=self.device)
            causal_TT = column_T <= column_T[-tokens_BT.shape[1] :, None]
            mask_B1TT = self._additive(state.attention_BT[:, None].bool() & causal_TT)[:, None]
        decoder = self.module.get_decoder()
        output = decoder(
            input_ids=tokens_BT,
            attention_mask=mask_B1TT,
            use_cache=True,
            encoder_hidden_states=state.encoder_BTH,
            encoder_attention_mask=state.encoder_mask_B11T,
            **{cache_argument(decoder): state.cache},
        )
        return self._scaled(output.last_hidden_state[:, -1].to(self.device))

    def _encode(self, prompts_BP: Tensor, prompt_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """The encoder's states [B, P + 1, H] of right-padded prompts with the end token after them, and their mask.

        `prompt_B` are the lengths. A prompt that already ends with the end token gets no second one. The mask is made
        here, since transformers asks one of two dimensions, in each forward pass, whether it hides anything.
        """
        prompt_B1 = to_device(prompt_B[:, None], self.device)
        open_B1 = prompts_BP.gather(1, prompt_B1 - 1) != self.end
        column_P = torch.arange(prompts_BP.shape[1] + 1, device=self.device)
        tokens_BP = torch.where(column_P == prompt_B1, self.end, nn.functional.pad(prompts_BP, (0, 1), value=self.pad))
        mask_B11P = self._additive(column_P < prompt_B1 + open_B1)[:, None, None]
        output = self.module.get_encoder()(input_ids=tokens_BP, attention_mask=mask_B11P)
        return output.last_hidden_state.to(self.device), mask_B11P

    @property
    def bodies(self) -> list[Any]:
        """See `LanguageModel.bodies`."""
        return [self.module.get_encoder(), self.module.get_decoder()]

    def _additive(self, visible: Tensor) -> Tensor:
        return additive_mask(visible, self.module.dtype)

    @property
    def _start(self) -> int:
        return int(self.module.config.decoder_start_token_id)

    def _scaled(self, states: Tensor) -> Tensor:
        """The head's input: T5 and UMT5 with tied embeddings scale the decoder's states first, mT5 does not."""
        config = self.module.config
        umt5 = config.model_type == "umt5" and config.tie_word_embeddings
        return states * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", umt5) else states

    def _check_head(self) -> None:
        config = self.module.config
        if config.model_type not in FAMILIES:
            remedy = f"of encoder-decoder models only {', '.join(FAMILIES)} are known"
            raise ModelError("model", config.model_type, remedy)
        if config.decoder_start_token_id is None:
            raise ModelError("model", config.model_type, "set its decoder_start_token_id, with which a text begins")
        ids = list(range(min(8, self.vocabulary)))
        self._check_same_logits(self.logits(self.prefill([ids])[0]), self._plain_logits(ids, ()))

    def _plain_logits(self, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """See `LanguageModel._plain_logits`."""
        end = [] if prompt[-1] == self.end else [self.end]
        logits_TV: Tensor = self.module(
            input_ids=torch.tensor([[*prompt, *end]], device=self.device),
            decoder_input_ids=torch.tensor([[self._start, *completion]], device=self.device),
            use_cache=False,
        ).logits[0]
        return logits_TV[:, : self.vocabulary].to(self.device)


def _layouts(batch: Batch) -> tuple[RowLayout, ...]:
    """The layouts of a batch that has none, brought from the device."""
    lengths = batch.attention_mask_BT.sum(1).tolist()
    actions = [np.flatnonzero(row) for row in batch.action_mask_BT.cpu().numpy()]
    return tuple(
        RowLayout(row, int(at[0]), length, at) for row, (at, length) in enumerate(zip(actions, lengths, strict=True))
    )
