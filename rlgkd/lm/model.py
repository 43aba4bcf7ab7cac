"""A causal language model as a policy: hidden states at the actions, and logits of one tempered distribution.

The next-token shift is written here and nowhere else: the state at position t-1 predicts token t. Temperature belongs
to the policy, so sampling and scoring see the same distribution. Vocabulary entries beyond the tokenizer's (of a padded
embedding), or beyond those that a teacher shares with its student, are cut off in both. Dropout is off, in sampling,
scoring and training alike.

Encoder-decoder models are in rlgkd.lm.encoder_decoder; `rlgkd.lm.language_model` wraps either kind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import ModelError, SettingError, one_line
from rlgkd.lm import fast
from rlgkd.lm.decode_state import DecodeState, cache_argument, left_padded
from rlgkd.lm.linear import onednn_linear, onednn_linears
from rlgkd.lm.placement import is_dispatched, is_quantized, local_head
from rlgkd.lm.shared_prefix import pack_shared_prefixes, supports_shared_prefix
from rlgkd.lm.text_format import end_token, model_end_ids
from rlgkd.types import Batch, PromptFormat

_decodes: WeakSet[PreTrainedModel] = WeakSet()
"""Modules that `LanguageModel` has seen decode rightly, which it need not see again."""


class LanguageModel:
    """A Hugging Face causal model with its tokenizer and the temperature at which it is sampled and scored."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float = 1.0,
        rows_at_once: int | None = None,
        compile_decoding: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            module: The model; it is put into evaluation mode.
            tokenizer: Its tokenizer.
            temperature: Above 0.
            rows_at_once: Rows that are decoded at a time; others wait for free slots. None: all.
            compile_decoding: Compile the decode step of a Llama-family model, on CUDA as a graph.
            vocabulary: The first tokens, the only ones that it generates, as `shared_vocabulary` counts them; None is
                all of the tokenizer's.

        Raises: SettingError if temperature <= 0; ModelError if the embedding is smaller than the tokenizer, no end
        token is in the vocabulary, or if on a few tokens the output head is more than a linear layer (see `logits`),
        or decoding with a cache differs from the model's whole forward pass.
        """
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.temperature = _checked_temperature(temperature)
        self.rows_at_once = rows_at_once
        self.compile_decoding = compile_decoding
        self.vocabulary = len(tokenizer) if vocabulary is None else vocabulary
        self.end_ids = frozenset(id_ for id_ in model_end_ids(module, tokenizer) if id_ < self.vocabulary)
        """Each of them ends a text."""
        if not self.end_ids:
            remedy = f"of its vocabulary the first {self.vocabulary} tokens are shared, and none of them ends its texts"
            raise ModelError("model", tokenizer.eos_token, remedy)
        self.format: PromptFormat | None = None
        """How it reads prompts, of a teacher with a format of its own; None: as the task writes them."""
        head = module.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError("model", module.config.model_type, "give a causal language model with a linear head")
        if head.weight.shape[0] < self.vocabulary:
            remedy = f"its head has {head.weight.shape[0]} entries but the tokenizer has {self.vocabulary} tokens"
            raise ModelError("model", module.config.model_type, remedy)
        self.head: nn.Linear = local_head(module, head) if is_dispatched(module) else head
        self._head_elsewhere: tuple[Tensor, Tensor | None] | None = None
        self._scale_and_cap = _scale_and_cap(module.config)
        self._check_forward()

    @property
    def device(self) -> torch.device:
        """Where its input goes and its states come from; that of its parameters, unless accelerate spreads them."""
        return self.head.weight.device

    def at_temperature(self, temperature: float) -> LanguageModel:
        """The same model, sampled and scored at another temperature; this one keeps its own.

        Raises: SettingError for one that is not above 0.
        """
        other = copy.copy(self)
        other.temperature = _checked_temperature(temperature)
        return other

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model takes."""
        limit = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        return 2**31 if limit is None else int(limit)

    @property
    def end(self) -> int:
        """The id of the tokenizer's end token."""
        return end_token(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that fills padding; the masks alone tell padding from text, so the end token's id will do."""
        pad = self.tokenizer.pad_token_id
        return self.end if pad is None else cast(int, pad)

    def states(self, batch: Batch) -> Tensor:
        """[N, H]: for each action of the batch, in row order, the hidden state that predicts it."""
        return self.states_and_head(batch)[0]

    def states_and_head(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`states`, and the head's weight, for `fused_sum` to send its gradient through (rlgkd.lm.fast.llama)."""
        batch = batch.to(self.device)  # a teacher may be elsewhere than its student
        head_VH = self.head.weight
        width = batch.tokens_BT.shape[1]
        if self.shares_prompts:
            shared = pack_shared_prefixes(batch.layouts_B, width, hidden=self.head.in_features, device=self.device)
            if shared is not None:
                states_NH, sent_VH = shared.states_and_head(self.body, batch.tokens_BT, head_VH)
                # A sharded head is gathered with the pass, and was not there before.
                return states_NH, self.head.weight if sent_VH is None or sent_VH is head_VH else sent_VH
        if fast.supported(self.body, "forward"):
            packed = fast.PackedTokens.pack_right_padded(batch.tokens_BT, batch.attention_mask_BT, self.body.dtype)
            row_N, column_N = batch.action_index_N
            predictor_N = packed.packed_index(row_N * width + column_N - 1)
            return cast("tuple[Tensor, Tensor]", fast.forward(self.body, packed, predictor_N, head_VH=head_VH))
        # Without a mask: attention's fast kernels take causal rows without one alone. Padding comes last, where no
        # token sees it.
        with onednn_linears(self.device):
            states_BTH = self.body(input_ids=batch.tokens_BT, use_cache=False).last_hidden_state.to(self.device)
        row_N, column_N = batch.action_index_N
        return states_BTH[row_N, column_N - 1], self.head.weight

    def actions(self, batch: Batch) -> Tensor:
        """[N]: the tokens that were chosen, in the order of `states`."""
        return batch.tokens_BT[batch.action_index_N]

    def prefill(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, DecodeState]:
        """Run prompts, and what has been generated after them; returns the last states [B, H] and the decode state."""
        completions = completions or [()] * len(prompts)
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        tokens_PT, attention_PT = left_padded(rows, pad=self.pad, device=self.device)
        # By the configuration the cache knows layers with sliding windows, which keep less than all tokens.
        state = DecodeState(DynamicCache(config=self.module.config), attention_PT[:, :0])
        with onednn_linears(self.device):
            return self._extend(tokens_PT, attention_PT, state), state

    def advance(self, token_B: Tensor, state: DecodeState) -> Tensor:
        """Append one token to each row; returns the states [B, H] after them."""
        # Not within `onednn_linears`: products of a few rows are too small to gain, and it costs every call some time.
        return self._extend(token_B[:, None], torch.ones_like(token_B)[:, None], state)

    def _extend(self, tokens_BT: Tensor, attention_BT: Tensor, state: DecodeState) -> Tensor:
        """Append tokens to what the cache holds; returns the last states [B, H]."""
        state.attention_BT = torch.cat([state.attention_BT, attention_BT], dim=1)
        positions_BT = (state.attention_BT.cumsum(1) - 1).clamp_min(0)[:, -tokens_BT.shape[1] :]
        output = self.body(
            input_ids=tokens_BT,
            attention_mask=state.attention_BT,
            position_ids=positions_BT,
            use_cache=True,
            **{cache_argument(self.body): state.cache},
        )
        last: Tensor = output.last_hidden_state[:, -1].to(self.device)
        return last

    def logits(self, states_NH: Tensor) -> Tensor:
        """[..., H] -> [..., V]: tempered logits over the tokenizer's vocabulary, in float32 at least."""
        return self.tempered(onednn_linear(states_NH, *self.trimmed_head))

    def head_on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """`trimmed_head` of a frozen model on another device, next to its student's: copied once."""
        if device == self.device:
            return self.trimmed_head
        if self._head_elsewhere is None or self._head_elsewhere[0].device != device:
            weight_VH, bias_V = self.trimmed_head
            self._head_elsewhere = weight_VH.to(device), None if bias_V is None else bias_V.to(device)
        return self._head_elsewhere

    @property
    def trimmed_head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [V, H] and bias [V], as views of the tokenizer's vocabulary alone."""
        bias = cast("Tensor | None", self.head.bias)
        return self.head.weight[: self.vocabulary], None if bias is None else bias[: self.vocabulary]

    def tempered(self, logits: Tensor) -> Tensor:
        """The head's outputs [..., V] as logits at the policy's temperature, in float32 at least."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scale, cap = self._scale_and_cap
        if scale != 1.0:
            logits = logits * scale
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    @property
    def shares_prompts(self) -> bool:
        """Whether samples of one prompt run together, the prompt once (rlgkd.lm.shared_prefix)."""
        return supports_shared_prefix(self.module.config) and not is_dispatched(self.module)

    @property
    def body(self) -> Any:
        """The transformer without its head."""
        body = self.module.base_model
        return body if body is not self.module else getattr(body, "model", body)  # Llama 4's prefix names no part of it

    @property
    def bodies(self) -> list[Any]:
        """The modules whose forward passes it runs."""
        return [self.body]

    def _check_forward(self) -> None:
        """Refuse by name what `_check_head` and `_check_decoding` find, or cannot run."""
        try:
            with torch.inference_mode():
                self._check_head()
                if self.module not in _decodes:
                    self._check_decoding()
        except (ModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an architecture of another interface fails in any way
            remedy = f"it cannot be run as a transformer with a cache ({type(error).__name__}: {one_line(error, 200)})"
            raise ModelError("model", self.module.config.model_type, remedy) from error
        _decodes.add(self.module)

    def _check_head(self) -> None:
        """Refuse architectures whose logits are not head(body): their probabilities would be wrong in silence."""
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        ours = self.logits(self.body(input_ids=ids, use_cache=False).last_hidden_state.to(self.device))
        self._check_same_logits(ours[0], self._plain_logits(ids[0, :1].tolist(), ids[0, 1:].tolist()))

    def _check_decoding(self) -> None:
        """Refuse architectures that ignore the cache, the padding mask or the positions that `prefill` hands them.

        Two prompts of unequal length, so that one is padded, exchange their rows and grow by two tokens.
        """
        rows = [[token % self.vocabulary for token in row] for row in ([1, 2, 3, 4, 5], [7, 6])]
        states_BH, state = self.prefill(rows)
        state.keep_rows(torch.tensor([1, 0], device=self.device))
        rows = rows[::-1]
        steps = [self.logits(states_BH.flip(0))]
        completions: list[list[int]] = [[], []]
        for _ in range(2):
            tokens = steps[-1].argmax(-1)
            for completion, token in zip(completions, tokens.tolist(), strict=True):
                completion.append(token)
            steps.append(self.logits(self.advance(tokens, state)))
        for ours_TV, row, completion in zip(torch.stack(steps, dim=1), rows, completions, strict=True):
            # In 16 bits the order of a sum changes a state by percents; what ignores the cache is off by a whole.
            if not self._agree(ours_TV, self._plain_logits(row, completion), rounding=5e-3, rounding_16_bits=0.25):
                raise self._unsound(
                    "decoded with a cache and padding, its log-probabilities are not those of its whole forward pass; "
                    "give a model that takes attention_mask, position_ids and a KV cache"
                )

    def _plain_logits(self, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """[len(completion) + 1, V]: transformers' own logits after the prompt and each token, untempered."""
        tokens_1T = torch.tensor([[*prompt, *completion]], device=self.device)
        logits_TV: Tensor = self.module(input_ids=tokens_1T, use_cache=False).logits[0, len(prompt) - 1 :]
        return logits_TV[:, : self.vocabulary].to(self.device)

    def _check_same_logits(self, ours: Tensor, theirs: Tensor) -> None:
        if bool(theirs.isnan().any()):
            raise self._unsound("its logits are NaN; take an earlier checkpoint of it")
        if not self._agree(ours, theirs, rounding=1e-3, rounding_16_bits=0.02):
            raise self._unsound("its logits are not a linear head over its last hidden state")

    def _unsound(self, remedy: str) -> ModelError:
        """Return the error of a model that failed a check: of weights that are not finite, if there are some."""
        names = [name for name, weight in self.module.named_parameters() if not bool(weight.isfinite().all())]
        if names:
            remedy = f"its weights {', '.join(names[:3])} are not finite; take an earlier checkpoint of it"
        return ModelError("model", self.module.config.model_type, remedy)

    def _agree(self, ours_TV: Tensor, theirs_TV: Tensor, *, rounding: float, rounding_16_bits: float) -> bool:
        """Whether our logits and transformers' untempered ones give the same log-probabilities up to rounding.

        The difference is taken relative to how far the distribution is from uniform, for the sake of untrained models.
        """
        theirs_TV = theirs_TV.to(ours_TV.dtype) / self.temperature
        difference_TV, scale_TV = (x - x.mean(-1, keepdim=True) for x in (ours_TV - theirs_TV, theirs_TV))
        exact = self.body.dtype in (torch.float32, torch.float64) and not is_quantized(self.module)
        tolerance = rounding if exact else rounding_16_bits
        return bool((difference_TV.norm(dim=-1) <= tolerance * scale_TV.norm(dim=-1)).all())


def _checked_temperature(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "give a finite number above 0")
    return temperature


def _scale_and_cap(config: PreTrainedConfig) -> tuple[float, float | None]:
    """What a family does to the head's outputs: a factor, then a soft cap; what else it does is refused at opening."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere's
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1's
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite's
    return float(scale), getattr(config, "final_logit_softcapping", None)  # Gemma 2's
