"""T5 and its family as a policy: the encoder sees the prompt, the decoder generates the completion.

The rest of the project sees one token sequence, prompt then completion, as with a causal model. The split is made
here: the prompt is everything before the first action, and the encoder gets it with the end token appended, as T5 was
trained; the decoder begins with its start token, so that here too the state at position t-1 predicts token t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import DataError, ModelError
from rlgkd.lm.decode_state import DecodeState, left_padded
from rlgkd.lm.linear import onednn_linears
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import LanguageModel
from rlgkd.types import Batch

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
        action_BT = batch.action_mask_BT
        attention_BT = batch.attention_mask_BT.bool()
        prompt_B = (attention_BT & ~action_BT).sum(1)
        length_B = action_BT.sum(1)
        column_T = torch.arange(action_BT.shape[1], device=action_BT.device)
        if not torch.equal(action_BT, attention_BT & (column_T >= prompt_B[:, None])):
            raise DataError("trajectory", "several turns", "an encoder reads one prompt; use a causal model for these")
        prompts = [row[:n].tolist() for row, n in zip(batch.tokens_BT, prompt_B.tolist(), strict=True)]
        # The decoder's input, right-padded: the start token, then each row's actions but for the last.
        step_L = column_T[: int(length_B.max())]
        source_BL = (prompt_B[:, None] + step_L - 1).clamp(0, action_BT.shape[1] - 1)
        tokens_BL = batch.tokens_BT.gather(1, source_BL)
        tokens_BL[:, 0] = self._start
        is_token_BL = step_L < length_B[:, None]
        with onednn_linears(self.device):
            encoder_BTH, encoder_attention_BT = self._encode(prompts)
            output = self.module.get_decoder()(
                input_ids=tokens_BL,
                attention_mask=is_token_BL.long(),
                encoder_hidden_states=encoder_BTH,
                encoder_attention_mask=encoder_attention_BT,
                use_cache=False,
            )
        return self._scaled(output.last_hidden_state.to(self.device))[is_token_BL], self.head.weight

    def prefill(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, DecodeState]:
        """See `LanguageModel.prefill`."""
        rows = [[self._start, *completion] for completion in completions or [()] * len(prompts)]
        tokens_PT, attention_PT = left_padded(rows, pad=self.pad, device=self.device)
        cache = EncoderDecoderCache(DynamicCache(config=self.module.config), DynamicCache(config=self.module.config))
        with onednn_linears(self.device):
            state = DecodeState(cache, attention_PT[:, :0], *self._encode(prompts))  # nothing is cached yet
            return self._extend(tokens_PT, attention_PT, state), state

    def _extend(self, tokens_BT: Tensor, attention_BT: Tensor, state: DecodeState) -> Tensor:
        state.attention_BT = torch.cat([state.attention_BT, attention_BT], dim=1)
        output = self.module.get_decoder()(
            input_ids=tokens_BT,
            attention_mask=state.attention_BT,
            past_key_values=state.cache,
            use_cache=True,
            encoder_hidden_states=state.encoder_BTH,
            encoder_attention_mask=state.encoder_attention_BT,
        )
        return self._scaled(output.last_hidden_state[:, -1].to(self.device))

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The encoder's states and its mask; a prompt that already ends with the end token gets no second one."""
        rows = [[*prompt] if prompt[-1] == self.end else [*prompt, self.end] for prompt in prompts]
        tokens_BT, attention_BT = left_padded(rows, pad=self.pad, device=self.device)
        output = self.module.get_encoder()(input_ids=tokens_BT, attention_mask=attention_BT)
        return output.last_hidden_state.to(self.device), attention_BT

    @property
    def _start(self) -> int:
        return int(self.module.config.decoder_start_token_id)

    def _scaled(self, states: Tensor) -> Tensor:
        """The head's input: T5 with tied embeddings scales the decoder's states first."""
        tied = getattr(self.module.config, "scale_decoder_outputs", False)
        return states * self.module.config.d_model**-0.5 if tied else states

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
