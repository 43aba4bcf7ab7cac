"""T5 and its family as a policy: the encoder reads the prompt, the decoder writes the completion.

The rest of the project sees one token sequence, prompt then completion, as of a causal model. The split is made here:
the prompt is what stands before the first action, and the encoder gets it with the end token behind it, as T5 was
trained; the decoder begins with its start token, so that again the state at position t-1 predicts token t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import DataError, ModelError
from rlgkd.lm.linear import wide_products
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import DecodeState, LanguageModel, left_padded
from rlgkd.types import Batch

FAMILY = ("t5", "mt5", "umt5")
"""Relative positions alone: others would count the padding of rows of unequal length as places."""


def language_model(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0
) -> LanguageModel:
    """Wrap a loaded model of either kind. Raises: as `LanguageModel`."""
    kind = EncoderDecoderModel if module.config.is_encoder_decoder else LanguageModel
    return kind(module, tokenizer, temperature=temperature)


def open_by_name(name: str, *, temperature: float = 1.0) -> LanguageModel:
    """Open a model of either kind with its own tokenizer. Raises: as `load` and `LanguageModel`."""
    return language_model(load(name), load_tokenizer(name), temperature=temperature)


class EncoderDecoderModel(LanguageModel):
    """A Hugging Face model of the T5 family with its tokenizer and its temperature."""

    def states_and_head(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As of `LanguageModel`. Raises: DataError where a row's actions are not its end in one block."""
        action_BT, attention_BT = batch.action_mask_BT, batch.attention_mask_BT.bool()
        prompt_B, length_B = (attention_BT & ~action_BT).sum(1), action_BT.sum(1)
        place_T = torch.arange(action_BT.shape[1], device=action_BT.device)
        if not torch.equal(action_BT, attention_BT & (place_T >= prompt_B[:, None])):
            raise DataError("trajectory", "several turns", "an encoder reads one prompt; use a causal model for these")
        prompts = [row[:n].tolist() for row, n in zip(batch.tokens_BT, prompt_B.tolist(), strict=True)]
        # Of the decoder: the start token, then each row's actions but for the last, right-padded.
        step_L = place_T[: int(length_B.max())]
        from_BL = (prompt_B[:, None] + step_L - 1).clamp(0, action_BT.shape[1] - 1)
        tokens_BL = batch.tokens_BT.gather(1, from_BL)
        tokens_BL[:, 0] = self._start
        written_BL = step_L < length_B[:, None]
        with wide_products():
            encoder_BTH, encoder_attention_BT = self._encode(prompts)
            output = self.module.get_decoder()(
                input_ids=tokens_BL, attention_mask=written_BL.long(), encoder_hidden_states=encoder_BTH,
                encoder_attention_mask=encoder_attention_BT, use_cache=False,
            )  # fmt: skip
        return self._scaled(output.last_hidden_state)[written_BL], self.head.weight

    def prefill(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, DecodeState]:
        """As of `LanguageModel`."""
        rows = [[self._start, *behind] for behind in written or [()] * len(prompts)]
        tokens_PT, attention_PT = left_padded(rows, pad=self.pad, device=self.device)
        cache = EncoderDecoderCache(DynamicCache(config=self.module.config), DynamicCache(config=self.module.config))
        with wide_products():
            progress = DecodeState(cache, attention_PT[:, :0], *self._encode(prompts))
            return self._feed(tokens_PT, attention_PT, progress), progress

    def _feed(self, tokens_BT: Tensor, attention_BT: Tensor, progress: DecodeState) -> Tensor:
        progress.attention_BT = torch.cat([progress.attention_BT, attention_BT], dim=1)
        output = self.module.get_decoder()(
            input_ids=tokens_BT, attention_mask=progress.attention_BT, past_key_values=progress.cache, use_cache=True,
            encoder_hidden_states=progress.encoder_BTH, encoder_attention_mask=progress.encoder_attention_BT,
        )  # fmt: skip
        return self._scaled(output.last_hidden_state[:, -1])

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The encoder's states and its mask; a prompt that already ends with the end token gets no second one."""
        rows = [[*prompt, *([] if prompt[-1] == self.end else [self.end])] for prompt in prompts]
        tokens_BT, attention_BT = left_padded(rows, pad=self.pad, device=self.device)
        return self.module.get_encoder()(
            input_ids=tokens_BT, attention_mask=attention_BT
        ).last_hidden_state, attention_BT

    @property
    def _start(self) -> int:
        return int(self.module.config.decoder_start_token_id)

    def _scaled(self, states: Tensor) -> Tensor:
        """What the head is applied to: T5 with tied embeddings scales the decoder's states first."""
        tied = getattr(self.module.config, "scale_decoder_outputs", False)
        return states * self.module.config.d_model**-0.5 if tied else states

    def _check_head(self) -> None:
        config = self.module.config
        if config.model_type not in FAMILY:
            raise ModelError(
                "model", config.model_type, f"of encoder-decoder models only {', '.join(FAMILY)} are known"
            )
        if config.decoder_start_token_id is None:
            raise ModelError("model", config.model_type, "set its decoder_start_token_id, with which a text begins")
        with torch.inference_mode():
            ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
            ours = self.logits(self.prefill(ids.tolist())[0])
            end = ids.new_tensor([[self.end]])
            theirs = self.module(
                input_ids=torch.cat([ids, end[:, : int(ids[0, -1] != self.end)]], dim=1),
                decoder_input_ids=torch.full_like(end, self._start),
            ).logits[:, -1, : self.vocabulary]
        self._compare(ours, theirs.to(ours.dtype))
