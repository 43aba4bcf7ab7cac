"""Decoding with the Llama family's layers, written out for one token a row.

In a decode step matrix products have few rows, and the calls around them weigh as much as the products. So keys and
values go into caches of their final size, weights are prepacked for the number of rows (rlgkd.lm.linear), LoRA adapters
are merged into them, and each layer is as few calls as possible (rlgkd.lm.fast.decode_ops). The tokens are those of the
model's own forward pass (tests/lm/fast/test_llama_decoder.py).

Dimensions: S slots of the KV cache, B rows that are decoded, N rows that are added, P prompts, M prompt tokens that are
copied, T columns of the cache or of padded prompts, G key heads, Q query heads of each, Z = S G, K heads of a token in
all (queries, keys, values, in that order: the last 2 G are cached), D numbers of a head, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlgkd.devices import to_device
from rlgkd.lm.decode_state import cache_argument
from rlgkd.lm.fast import support
from rlgkd.lm.fast.cuda_graph import graphed_step
from rlgkd.lm.fast.decode_ops import CpuDecodeOps, DecodeOps, TorchDecodeOps
from rlgkd.lm.fast.layer_weights import LayerWeights
from rlgkd.lm.fast.llama import forward
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.linear import onednn_linears, prepacked_linear

COMPACT_BELOW = 0.75
"""The slots are compacted when fewer than this share of them hold a row: it costs a copy of the cache."""

COLUMN_ALIGNMENT = 8
"""A step reads from a multiple of this column. torch's attention on CUDA wants masks aligned to 16 bytes, and else
copies them (https://github.com/pytorch/pytorch/pull/104310)."""


class DecodedModel(Protocol):
    """What the decoder uses of a `rlgkd.lm.LanguageModel`, which is defined above this package."""

    module: PreTrainedModel
    head: nn.Linear
    compile_decoding: bool

    @property
    def body(self) -> Any:
        """The transformer without its head."""
        ...

    @property
    def device(self) -> torch.device:
        """That of the parameters."""
        ...

    @property
    def pad(self) -> int:
        """The id that fills padding."""
        ...

    @property
    def trimmed_head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight and bias over the tokenizer's vocabulary."""
        ...

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits at the policy's temperature."""
        ...


class LlamaDecoder:
    """A `rlgkd.lm.decoders.Decoder` of the Llama family.

    The cache has S slots of T columns. A slot holds one row; the slots of rows that have ended wait for others. In each
    step all rows write to the same column, wherever they are in their texts: the cache is a ring, and the prompt of a
    row that is added goes to the columns before the next one. Keys are cached rotated, so their order means nothing to
    attention, and a mask says which columns a slot sees. A step reads the columns from the oldest that a row still sees
    to the latest, or the whole ring where that range wraps around its end. The query heads that share a key head are as
    many queries of one head, so that attention is one batched product over Z = S G.

    With `compile_decoding` every step takes all slots and columns, and its inputs stay where they are: a CUDA graph
    needs the same shapes and addresses each time (rlgkd.lm.fast.cuda_graph).
    """

    def __init__(self, lm: DecodedModel, rows: int, size: int) -> None:
        """Make empty caches for `rows` rows at a time of at most `size` tokens, prompts included."""
        self.lm = lm
        self.size = size
        weight_VH, bias_V = lm.trimmed_head
        # Allocate the largest first so that it reuses the block that its gradient has freed, before small tensors
        # fragment it.
        self.head = prepacked_linear([weight_VH], [bias_V], rows)
        config = lm.module.config
        device = lm.device
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else lm.head.weight.dtype
        self.key_heads = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Keys apart from values: each is then a batch of Z matrices to attention's products, without a copy.
        self.caches = [
            torch.zeros(2, rows * self.key_heads, size, head_dim, dtype=dtype, device=device) for _ in lm.body.layers
        ]
        self.mask_Z1T = torch.full((rows * self.key_heads, 1, size), -torch.inf, dtype=dtype, device=device)
        self.position_S = torch.zeros(rows, dtype=torch.long, device=device)
        self.token_S = torch.zeros_like(self.position_S)
        self.column_1 = torch.zeros_like(self.position_S[:1])
        # Columns are counted on from the start; where the ring has them is this modulo `size`.
        self.next_column = 0
        self.oldest_column = 0
        self.first_column_S = np.zeros(rows, dtype=np.int64)
        self.slot_B = np.zeros(0, dtype=np.int64)
        self.gather_index_B: Tensor | None = None
        self.state_BH = lm.head.weight.new_empty(0, lm.head.in_features)
        positions_1T = torch.arange(size, device=device)[None]
        cos_TD, sin_TD = (table_1TD[0] for table_1TD in lm.body.rotary_emb(self.state_BH, positions_1T))
        on_cpu = device.type == "cpu" and dtype.itemsize >= 4 and not lm.compile_decoding
        make_ops = CpuDecodeOps if on_cpu else TorchDecodeOps
        heads = config.num_attention_heads + 2 * self.key_heads
        self.ops: DecodeOps = make_ops(cos_TD, sin_TD, heads=heads, value_heads=self.key_heads, eps=config.rms_norm_eps)
        prepack_rows = None if lm.compile_decoding else rows  # torch.compile takes no oneDNN tensors
        self.layers = [LayerWeights.from_layer(layer, self.ops, prepack_rows) for layer in lm.body.layers]
        self.norm = self.ops.norm(lm.body.norm.weight)
        # A module function, not a bound method: an object that holds a method of itself is a reference cycle, and would
        # keep its copies of all weights until the garbage collector's next run.
        self._decode_step = graphed_step(torch.compile(decode_step), device) if lm.compile_decoding else decode_step

    @property
    def can_add_rows(self) -> bool:
        """True: a row takes any free slot."""
        return True

    def logits(self) -> Tensor:
        """See `Decoder.logits`."""
        return self.lm.tempered(self.head(self.state_BH))

    def keep_rows(self, rows: np.ndarray, *, final: bool) -> None:
        """See `Decoder.keep_rows`."""
        self.slot_B = self.slot_B[rows]
        self.state_BH = self.state_BH[self._to_device(rows)]
        if final and not self.lm.compile_decoding and 0 < len(rows) < COMPACT_BELOW * len(self.position_S):
            self._compact()
        self._refresh_indices()

    def add_rows(self, prompts: Sequence[Sequence[int]], prompt_N: np.ndarray) -> None:
        """See `Decoder.add_rows`."""
        length_N = np.array([len(prompts[prompt]) for prompt in prompt_N])
        if not len(self.slot_B):
            self.next_column = int(length_N.max())
        # 1. Choose free slots.
        slot_N = np.setdiff1d(np.arange(len(self.position_S)), self.slot_B)[: len(prompt_N)]
        slot_index_N = self._to_device(slot_N)
        # 2. Let them see the columns just before the next one, as many as their prompts have tokens.
        age_T = (self.next_column - 1 - np.arange(self.size)) % self.size
        hidden_NT = self._to_device(age_T >= length_N[:, None])
        mask_NT = self.mask_Z1T.new_zeros(hidden_NT.shape).masked_fill_(hidden_NT, -torch.inf)
        self.mask_Z1T.unflatten(0, (-1, self.key_heads))[slot_index_N] = mask_NT[:, None, None]
        # 3. Continue at the positions after the prompts.
        self.position_S[slot_index_N] = self._to_device(length_N)
        self.first_column_S[slot_N] = self.next_column - length_N
        # 4. Run the prompts, each once, and copy their keys and values to those columns.
        state_PH = self._prefill(prompts, slot_N, prompt_N)
        # 5. Append the rows.
        self.slot_B = np.concatenate([self.slot_B, slot_N])
        self.state_BH = torch.cat([self.state_BH, state_PH[self._to_device(prompt_N)]])
        self._refresh_indices()

    def _prefill(self, prompts: Sequence[Sequence[int]], slot_N: np.ndarray, prompt_N: np.ndarray) -> Tensor:
        """[P, H]: the states after the prompts, whose keys and values go to the slots: those of `prompt_N` to `slot_N`.

        Prompts are padded on the right, where no token sees the padding.
        """
        length_P = np.array([len(prompt) for prompt in prompts])
        width = int(length_P.max())
        pad = self.lm.pad
        rows = [[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts]
        tokens_PT = self._to_device(np.array(rows))
        last_P = self._to_device(np.arange(len(prompts)) * width + length_P - 1)
        # Each of the M copied tokens comes from a flat index of the padded [P, T] and goes to a column of a slot.
        length_N = length_P[prompt_N]
        offset_M = np.concatenate([np.arange(length) for length in length_N])
        source_M = self._to_device(offset_M + np.repeat(prompt_N * width, length_N))
        slot_M = self._to_device(np.repeat(slot_N, length_N))
        column_M = self._to_device((offset_M + np.repeat(self.next_column - length_N, length_N)) % self.size)
        caches = iter(self.caches)

        def write_cache(index_M: Tensor, key_NGD: Tensor, value_NGD: Tensor) -> None:
            cache_2SGTD = next(caches).unflatten(1, (-1, self.key_heads))
            new_2NGD = (self.ops.to_rotary_layout(key_NGD, -1), value_NGD)
            for cache_SGTD, new_NGD in zip(cache_2SGTD, new_2NGD, strict=True):
                cache_SGTD[slot_M, :, column_M] = new_NGD[index_M].to(cache_SGTD.dtype)

        if support.can_forward(self.lm.body):
            is_token_PT = self._to_device(np.arange(width) < length_P[:, None])
            packed = PackedTokens.pack_right_padded(tokens_PT, is_token_PT, self.lm.body.dtype)
            on_layer = partial(write_cache, packed.packed_index(source_M))
            return forward(self.lm.body, packed, packed.packed_index(last_P), on_layer=on_layer)[0]
        cache = DynamicCache(config=self.lm.module.config)
        with onednn_linears(self.lm.device):
            body = self.lm.body
            output = body(input_ids=tokens_PT, use_cache=True, **{cache_argument(body): cache})
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            write_cache(source_M, *(x.transpose(1, 2).flatten(0, 1) for x in (layer.keys, layer.values)))
        states: Tensor = output.last_hidden_state.flatten(0, 1)[last_P]
        return states

    def _refresh_indices(self) -> None:
        """Recompute what depends on which slots hold rows."""
        in_order = np.array_equal(self.slot_B, np.arange(len(self.position_S)))
        self.gather_index_B = None if in_order else self._to_device(self.slot_B)
        self.oldest_column = int(self.first_column_S[self.slot_B].min(initial=self.next_column))

    def step(self, token_B: Tensor) -> None:
        """See `Decoder.step`."""
        oldest = self.oldest_column - self.oldest_column % self.size % COLUMN_ALIGNMENT
        column = self.next_column % self.size
        first = oldest % self.size
        count = self.next_column + 1 - oldest
        if self.lm.compile_decoding or first + count > self.size:
            first = 0
            count = self.size
        if self.gather_index_B is None:
            self.token_S.copy_(token_B)
        else:
            # Free slots take part, and nobody reads what they write; the clamp keeps their positions within the table.
            self.token_S[self.gather_index_B] = token_B
            self.position_S.clamp_(max=self.size - 1)
        # Of the free slots too, so that no row of scores is -inf alone, which would be NaN.
        self.mask_Z1T.select(-1, column).zero_()
        # A graph takes the column from memory; elsewhere a number saves the scatter.
        where = self.column_1.fill_(column) if self.lm.compile_decoding else column
        mask_Z1T = self.mask_Z1T.narrow(-1, first, count)
        state_SH = self._decode_step(self, self.token_S, self.position_S, where, first, mask_Z1T)
        self.state_BH = state_SH if self.gather_index_B is None else state_SH[self.gather_index_B]
        self.position_S.add_(1)
        self.next_column += 1

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.lm.device)

    def _compact(self) -> None:
        """Drop the free slots."""
        kept = self._to_device(self.slot_B)

        def select_slots(x: Tensor, axis: int) -> Tensor:
            by_slot: Tensor = x.unflatten(axis, (-1, self.key_heads))
            return by_slot.index_select(axis, kept).flatten(axis, axis + 1)

        for index, cache_2ZTD in enumerate(self.caches):  # one by one, so as not to hold all caches twice
            self.caches[index] = select_slots(cache_2ZTD, 1)
        self.mask_Z1T = select_slots(self.mask_Z1T, 0)
        self.position_S = self.position_S[kept]
        self.token_S = self.token_S[kept]
        self.first_column_S = self.first_column_S[self.slot_B]
        self.slot_B = np.arange(len(kept))


def decode_step(
    decoder: LlamaDecoder,
    token_S: Tensor,
    position_S: Tensor,
    column: Tensor | int,
    first: int,
    mask_Z1T: Tensor,
) -> Tensor:
    """Run one token of each slot through the layers; returns the states [S, H] after it.

    Args:
        decoder: Its caches are written.
        token_S: The tokens.
        position_S: Their positions in their texts.
        column: The column of the cache that they all write to.
        first: The column from which on the caches are read.
        mask_Z1T: Added to attention scores; its columns are those that are read.
    """
    ops = decoder.ops
    key_heads = decoder.key_heads
    rows, _, columns = mask_Z1T.shape
    state_SH: Tensor = decoder.lm.body.embed_tokens(token_S)
    tables = ops.rotary_tables(position_S)
    for layer, cache_2ZTD in zip(decoder.layers, decoder.caches, strict=True):
        head_dim = cache_2ZTD.shape[-1]
        heads_SKD = layer.qkv(layer.attention_norm(state_SH)).view(len(token_S), -1, head_dim)
        if layer.query_key_norm is not None:
            query_key_SKD = heads_SKD[:, :-key_heads]
            query_key_SKD.copy_(layer.query_key_norm(query_key_SKD))
        heads_SKD = ops.apply_rotary(heads_SKD, tables).to(cache_2ZTD.dtype)
        new_2SGD = heads_SKD[:, -2 * key_heads :].unflatten(1, (2, -1)).transpose(0, 1)
        if isinstance(column, int):
            cache_2ZTD.select(2, column).view(new_2SGD.shape).copy_(new_2SGD)
        else:
            cache_2ZTD.index_copy_(2, column, new_2SGD.flatten(1, 2)[:, :, None])
        keys_ZTD, values_ZTD = cache_2ZTD.narrow(2, first, columns).unbind()
        queries_ZQD = heads_SKD[:, : -2 * key_heads].reshape(rows, -1, head_dim)
        output_ZQD = ops.attention(queries_ZQD, keys_ZTD, values_ZTD, mask_Z1T, layer.scale)
        state_SH = layer.out(output_ZQD.reshape(len(token_S), -1), state_SH)
        gate, up = layer.gate_up(layer.mlp_norm(state_SH)).chunk(2, dim=-1)
        state_SH = layer.down(silu(gate).mul_(up), state_SH)
    return decoder.norm(state_SH)
