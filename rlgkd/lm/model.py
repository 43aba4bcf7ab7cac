"""A causal language model as a policy: hidden states at the actions, and logits of one tempered distribution.

The next-token shift is written here and nowhere else: the state at position t-1 predicts token t. Temperature belongs
to the policy, so sampling and scoring see the same distribution. Vocabulary entries beyond the tokenizer's (a padded
embedding) are cut off in both. Dropout is off, in sampling, scoring and training alike.

Encoder-decoder models are in rlgkd.lm.encoder_decoder; `rlgkd.lm.language_model` wraps either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.fast import llama
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.linear import wide, wide_products
from rlgkd.lm.shared_prefix import pack_shared_prefixes, supports_shared_prefix
from rlgkd.types import Batch


@dataclass
class DecodeState:
    """What a model has read and written of some rows, for it to go on from; `LanguageModel.advance` changes it."""

    cache: Cache
    attention_BT: Tensor
    """1 at the tokens that the cache holds, 0 at padding."""
    encoder_BTH: Tensor | None = None
    encoder_attention_BT: Tensor | None = None
    """Of an encoder-decoder model: what its encoder has made of the prompts."""

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows; the same row may be kept several times."""
        self.cache.batch_select_indices(rows)
        self.attention_BT = self.attention_BT[rows]
        if self.encoder_BTH is not None and self.encoder_attention_BT is not None:
            self.encoder_BTH, self.encoder_attention_BT = self.encoder_BTH[rows], self.encoder_attention_BT[rows]

    @property
    def replaceable(self) -> bool:
        """Whether `replace` works: a cache of all tokens in each layer, and no encoder."""
        return self.encoder_BTH is None and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def replace(self, rows: Tensor, other: DecodeState) -> None:
        """Put the other's rows in the place of these; columns that no row needs any more are dropped."""
        wide = max(self.attention_BT.shape[1], other.attention_BT.shape[1])

        def merged(mine: Tensor, theirs: Tensor, dim: int) -> Tensor:
            mine, theirs = (_widened(tensor, wide, dim) for tensor in (mine, theirs))
            return mine.index_copy(0, rows, theirs).narrow(dim, unused, wide - unused)

        unused = 0
        attention_BT = merged(self.attention_BT, other.attention_BT, 1)
        unused = int(attention_BT.any(0).int().argmax())
        self.attention_BT = attention_BT[:, unused:]
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            assert isinstance(mine, DynamicLayer) and isinstance(theirs, DynamicLayer)
            for name in ("keys", "values"):
                setattr(mine, name, merged(getattr(mine, name), getattr(theirs, name), 2))


class LanguageModel:
    """A Hugging Face causal model with its tokenizer and the temperature it is sampled and scored at."""

    def __init__(
        self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0
    ) -> None:
        """Wrap a loaded model.

        Raises: SettingError if temperature <= 0; ModelError if the embedding is smaller than the tokenizer, or if the
        output head is more than a linear layer (see `logits`), which is tested on a few tokens.
        """
        if not temperature > 0:
            raise SettingError("temperature", temperature, "give a number above 0")
        self.module, self.tokenizer, self.temperature = module.eval(), tokenizer, temperature
        self.rows_at_once: int | None = None
        """That it writes; those that wait take the places of those that end. None: all."""
        self.compiled = False
        """Whether torch.compile makes one program of a step of its writing, on CUDA a graph (rlgkd.lm.decoders)."""
        self.vocabulary = len(tokenizer)
        end_token(tokenizer)
        head = module.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError("model", module.config.model_type, "give a causal language model with a linear head")
        if head.weight.shape[0] < self.vocabulary:
            raise ModelError(
                "model", module.config.model_type,
                f"its head has {head.weight.shape[0]} entries but the tokenizer has {self.vocabulary} tokens",
            )  # fmt: skip
        self.head: nn.Linear = head
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.head.weight.device

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the model takes."""
        limit = getattr(self.module.config, "max_position_embeddings", None)
        return 2**31 if limit is None else int(limit)

    @property
    def end(self) -> int:
        """The id of the end token."""
        return end_token(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that fills padding; only the masks tell padding apart, so the end token's id will do."""
        pad = self.tokenizer.pad_token_id
        return self.end if pad is None else cast(int, pad)

    def states(self, batch: Batch) -> Tensor:
        """[N, H]: for each action of the batch, in row order, the hidden state that predicts it."""
        return self.states_and_head(batch)[0]

    def states_and_head(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`states`, and the head's weight through which `fused_sum` shall send its gradient (rlgkd.lm.fast.llama)."""
        head_VH, width = self.head.weight, batch.tokens_BT.shape[1]
        if self.shares_prompts and (shared := pack_shared_prefixes(
            batch.layouts_B, width, hidden=self.head.in_features, device=self.device
        )):  # fmt: skip
            return cast("tuple[Tensor, Tensor]", shared.states_and_head(self.body, batch.tokens_BT, head_VH))
        if llama.readable(self.body):
            texts = PackedTokens.padded(batch.tokens_BT, batch.attention_mask_BT, self.body.dtype)
            row_N, action_N = batch.action_mask_BT[:, 1:].nonzero(as_tuple=True)
            before_N = texts.number(row_N * width + action_N)
            return cast("tuple[Tensor, Tensor]", llama.read(self.body, texts, before_N, head_VH=head_VH))
        positions_BT = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
        with wide_products():
            states_BTH = self.body(
                input_ids=batch.tokens_BT,
                attention_mask=batch.attention_mask_BT,
                position_ids=positions_BT,
                use_cache=False,
            ).last_hidden_state
        return states_BTH[:, :-1][batch.action_mask_BT[:, 1:]], head_VH

    def actions(self, batch: Batch) -> Tensor:
        """[N]: the tokens that were chosen, in the order of `states`."""
        return batch.tokens_BT[:, 1:][batch.action_mask_BT[:, 1:]]

    def prefill(
        self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, DecodeState]:
        """Read the prompts and what is written behind them; returns the states [B, H] behind, and the progress."""
        rows = [[*prompt, *behind] for prompt, behind in zip(prompts, written or [()] * len(prompts), strict=True)]
        tokens_PT, attention_PT = left_padded(rows, pad=self.pad, device=self.device)
        progress = DecodeState(DynamicCache(config=self.module.config), attention_PT[:, :0])
        with wide_products():
            return self._feed(tokens_PT, attention_PT, progress), progress

    def advance(self, token_B: Tensor, progress: DecodeState) -> Tensor:
        """Write one more token to each row; returns the states [B, H] behind them."""
        return self._feed(token_B[:, None], torch.ones_like(token_B)[:, None], progress)

    def _feed(self, tokens_BT: Tensor, attention_BT: Tensor, progress: DecodeState) -> Tensor:
        """Put tokens behind what the progress holds; returns the last state [B, H]."""
        progress.attention_BT = torch.cat([progress.attention_BT, attention_BT], dim=1)
        positions_BT = (progress.attention_BT.cumsum(1) - 1).clamp_min(0)[:, -tokens_BT.shape[1] :]
        output = self.body(
            input_ids=tokens_BT, attention_mask=progress.attention_BT, position_ids=positions_BT,
            past_key_values=progress.cache, use_cache=True,
        )  # fmt: skip
        last: Tensor = output.last_hidden_state[:, -1]
        return last

    def logits(self, states_NH: Tensor) -> Tensor:
        """[..., H] -> [..., V]: logits, tempered, over the tokenizer's vocabulary, in float32 at least."""
        return self.tempered(wide(states_NH, *self.trimmed_head))

    @property
    def trimmed_head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [V, H] and bias [V], views of the tokenizer's vocabulary alone."""
        bias = cast("Tensor | None", self.head.bias)
        return self.head.weight[: self.vocabulary], None if bias is None else bias[: self.vocabulary]

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits [..., V] as the head gives them, at the policy's temperature, in float32 at least."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = getattr(self.module.config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    @property
    def shares_prompts(self) -> bool:
        """Whether samples of one prompt are read together (rlgkd.lm.shared_prefix)."""
        return supports_shared_prefix(self.module.config)

    @property
    def body(self) -> Any:
        """The transformer without its head."""
        return self.module.base_model

    def _check_head(self) -> None:
        """Refuse architectures whose logits are not head(body): silently wrong probabilities are the worst outcome."""
        with torch.inference_mode():
            ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
            ours = self.logits(self.body(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = self.module(input_ids=ids, use_cache=False).logits[..., : self.vocabulary].to(ours.dtype)
        self._compare(ours, theirs)

    def _compare(self, ours: Tensor, theirs: Tensor) -> None:
        if not torch.allclose(ours, theirs / self.temperature, rtol=1e-3, atol=1e-3):
            raise ModelError(
                "model", self.module.config.model_type, "its logits are not a linear head over its last hidden state"
            )


def left_padded(rows: Sequence[Sequence[int]], *, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, T], of rows that all end at the same place."""
    width = max(map(len, rows))
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    attention = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :], attention[number, width - len(row) :] = row, 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(attention).to(device)


def _widened(tensor: Tensor, wide: int, dim: int) -> Tensor:
    """Zeros in front, up to `wide` entries along `dim`."""
    shape = list(tensor.shape)
    shape[dim] = wide - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's end token.

    Raises: ModelError if it has none; without one no completion can end by itself.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("tokenizer", tokenizer.name_or_path, "set its eos_token, without which no text can end")
    return cast(int, tokenizer.eos_token_id)


def check_same_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    *,
    field: str = "teacher",
    owner: str = "student",
    name: str = "",
) -> None:
    """Raise ModelError unless both tokenizers map the same tokens to the same ids; a divergence needs that.

    `field` and `name` tell which model `other` belongs to, `owner` whose tokenizer it must equal.
    """
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    odd = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise ModelError(
        field, name or other.name_or_path,
        f"its vocabulary differs from the {owner}'s ({len(theirs)} against {len(ours)} tokens, {len(odd)} differ, "
        f"first {odd[0]!r}); give a {field} with the {owner}'s tokenizer",
    )  # fmt: skip
