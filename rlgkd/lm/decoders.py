"""PackedTokens written on, token by token: by the model's own forward pass, or by its layers written out for one token.

The second is for decoding, where products are thin and what surrounds them weighs as much: one token a row, keys and
values into caches of their final size, and on a CPU the weights laid out once for products of that many rows. It knows
the Llama family (rlgkd.lm.fast.llama), whose layers differ by a bias or a norm, LoRA's adapters merged into the
weights; other models, and those whose layers have been changed (quantised weights), write with their own forward pass.
Both write the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlgkd.lm.fast import llama
from rlgkd.lm.fast.cuda_graph import replayed
from rlgkd.lm.fast.decode_ops import CpuDecodeOps, DecodeOps, TorchDecodeOps
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.linear import Product, prepacked_linear, wide_products
from rlgkd.lm.lora import linear_at_heart, merged_weight
from rlgkd.lm.model import DecodeState, LanguageModel

CROWDED = 0.75
"""Rows are moved together when fewer than this share of them are still written: moving costs a copy of the cache."""

ALIGNED = 8
"""Columns that a step begins to read are a multiple of it: an accelerator's attention reads masks by 16 bytes."""


class Writer(Protocol):
    """Some rows on their way."""

    @property
    def admits(self) -> bool:
        """Whether rows may begin beside others that are on their way."""
        ...

    def logits(self) -> Tensor:
        """[B, V]: of the next token of each row, tempered."""
        ...

    def keep(self, rows: np.ndarray, *, complete: bool) -> None:
        """Go on with these rows alone; `complete` says that no other is admitted any more."""
        ...

    def admit(self, prompts: Sequence[Sequence[int]], places: np.ndarray) -> None:
        """Read prompts; behind the rows there are begins one for each of `places`, which tells its prompt."""
        ...

    def write(self, token_B: Tensor) -> None:
        """Put one token behind each row."""
        ...


def writer(lm: LanguageModel, rows: int, size: int) -> Writer:
    """A writer of at most so many rows at a time, none of them longer than `size` with its prompt."""
    return LlamaDecoder(lm, rows, size) if written_out(lm) else HuggingFaceDecoder(lm)


def written_out(lm: LanguageModel) -> bool:
    """Whether the layers are those that `LlamaDecoder` knows."""
    linears = (part for name, part in lm.body.named_modules() if name.endswith("_proj"))
    return llama.known(lm.module) and all(map(linear_at_heart, linears))


class HuggingFaceDecoder:
    """Writes with the model's forward pass."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.state_BH: Tensor | None = None
        self.progress: DecodeState | None = None

    @property
    def admits(self) -> bool:
        """As of `Writer`."""
        return self.progress is not None and self.progress.replaceable

    def logits(self) -> Tensor:
        """As of `Writer`."""
        assert self.state_BH is not None
        return self.lm.logits(self.state_BH)

    def keep(self, rows: np.ndarray, *, complete: bool) -> None:
        """As of `Writer`."""
        assert self.state_BH is not None and self.progress is not None
        row_B = torch.from_numpy(rows).to(self.lm.device)
        self.state_BH = self.state_BH[row_B]
        self.progress.keep(row_B)

    def admit(self, prompts: Sequence[Sequence[int]], places: np.ndarray) -> None:
        """As of `Writer`."""
        state_PH, progress = self.lm.prefill(prompts)
        from_B = torch.from_numpy(places).to(self.lm.device)
        progress.keep(from_B)
        if self.progress is None or self.state_BH is None or not len(self.state_BH):
            self.state_BH, self.progress = state_PH[from_B], progress
            return
        self.state_BH = torch.cat([self.state_BH, state_PH[from_B]])
        place_B = torch.arange(len(self.state_BH), device=self.lm.device)
        self.progress.keep(place_B.clamp(max=len(place_B) - len(from_B) - 1))  # room for the new ones
        self.progress.replace(place_B[-len(from_B) :], progress)

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        assert self.progress is not None
        self.state_BH = self.lm.advance(token_B, self.progress)


class LlamaDecoder:
    """Writes with the layers of the Llama family, written out for one token a row.

    The cache has S slots, one for each of the B rows and for those that have ended, whose slots wait for others. A slot
    has T columns. In a step all rows write to the same column, wherever they are in their texts: the cache is a ring,
    and a row that begins has its prompt in the columns before the next. Keys are rotated already, so their order means
    nothing to attention; the columns that a slot may see are told by `unseen`. A step reads from the oldest column that
    a row still sees to the latest, or all of the ring where its end lies between them. G key heads of size D, each of
    which answers several query heads: they stand as so many queries of one head, Z = S G in all. A layer's heads are in
    the order queries, keys, values, K in all; the last 2 G are cached.

    If the model is to be compiled, all slots and columns take part in each step, and what a step is given stays where
    it is: shapes and memory are the same each time, as a CUDA graph needs it (rlgkd.lm.fast.cuda_graph).
    """

    def __init__(self, lm: LanguageModel, rows: int, size: int) -> None:
        self.lm, self.size = lm, size
        laid_out = None if lm.compiled else rows  # torch's compiler does not take what oneDNN has laid out
        weight_VH, bias_V = lm.trimmed_head
        # The largest first: it takes the place in memory that its gradient has left, before small ones are put there.
        self.head = prepacked_linear([weight_VH], [bias_V], rows)
        config, device = lm.module.config, lm.device
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else lm.head.weight.dtype
        self.key_heads = config.num_key_value_heads
        depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.caches = [  # keys and values apart: each is a matrix for each of Z to attention's products, without a copy
            torch.zeros(2, rows * self.key_heads, size, depth, dtype=dtype, device=device) for _ in lm.body.layers
        ]
        self.unseen_Z1T = torch.full((rows * self.key_heads, 1, size), -torch.inf, dtype=dtype, device=device)
        self.place_S = torch.zeros(rows, dtype=torch.long, device=device)
        self.token_S, self.column_1 = torch.zeros_like(self.place_S), torch.zeros_like(self.place_S[:1])
        self.written = self.since = 0
        self.begun_S = np.zeros(rows, dtype=np.int64)
        self.slot_B = np.zeros(0, dtype=np.int64)
        self.apart_B: Tensor | None = None
        self.state_BH = lm.head.weight.new_empty(0, lm.head.in_features)
        cos_TD, sin_TD = (x[0] for x in lm.body.rotary_emb(self.state_BH, torch.arange(size, device=device)[None]))
        kind = CpuDecodeOps if device.type == "cpu" and dtype.itemsize >= 4 and not lm.compiled else TorchDecodeOps
        heads = config.num_attention_heads + 2 * self.key_heads
        self.parts: DecodeOps = kind(cos_TD, sin_TD, heads=heads, still=self.key_heads, eps=config.rms_norm_eps)
        self.layers = [_Layer.of(layer, self.parts, laid_out) for layer in lm.body.layers]
        self.norm = self.parts.norm(lm.body.norm.weight)
        # Not bound to self: what holds itself lives, with all its weights, until Python looks for circles.
        through = LlamaDecoder._through_the_layers
        self.step = replayed(torch.compile(through), device) if lm.compiled else through

    @property
    def admits(self) -> bool:
        """As of `Writer`."""
        return True

    def logits(self) -> Tensor:
        """As of `Writer`."""
        return self.lm.tempered(self.head(self.state_BH))

    def keep(self, rows: np.ndarray, *, complete: bool) -> None:
        """As of `Writer`."""
        self.slot_B, self.state_BH = self.slot_B[rows], self.state_BH[self._there(rows)]
        if complete and not self.lm.compiled and 0 < len(rows) < CROWDED * len(self.place_S):
            self._move_together()
        self._settle()

    def admit(self, prompts: Sequence[Sequence[int]], places: np.ndarray) -> None:
        """As of `Writer`."""
        length_N = np.array([len(prompts[place]) for place in places])
        if not len(self.slot_B):
            self.written = int(length_N.max())
        free_N = np.setdiff1d(np.arange(len(self.place_S)), self.slot_B)[: len(places)]
        back_T = (self.written - 1 - np.arange(self.size)) % self.size  # how far a column is behind the latest
        behind_NT = self._there(back_T >= length_N[:, None])
        slot_N = self._there(free_N)
        unseen_NT = self.unseen_Z1T.new_zeros(behind_NT.shape).masked_fill_(behind_NT, -torch.inf)
        self.unseen_Z1T.unflatten(0, (-1, self.key_heads))[slot_N] = unseen_NT[:, None, None]
        self.place_S[slot_N], self.begun_S[free_N] = self._there(length_N), self.written - length_N
        state_PH = self._read(prompts, free_N, places)
        self.slot_B = np.concatenate([self.slot_B, free_N])
        self.state_BH = torch.cat([self.state_BH, state_PH[self._there(places)]])
        self._settle()

    def _read(self, prompts: Sequence[Sequence[int]], slot_N: np.ndarray, from_N: np.ndarray) -> Tensor:
        """[P, H], the states behind prompts; their keys and values go to these slots from the prompts so numbered.

        Padding stands behind the prompts, where no token looks.
        """
        length_P = np.array([len(prompt) for prompt in prompts])
        width = int(length_P.max())
        pad = self.lm.pad
        rows = [[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts]
        tokens_PT = torch.tensor(rows, device=self.lm.device)
        last_P = self._there(np.arange(len(prompts)) * width + length_P - 1)
        # Each of the M tokens that are copied comes from a place in the flattened [P, T] and goes to a slot's column.
        length_N = length_P[from_N]
        number_M = np.concatenate([np.arange(length) for length in length_N])
        place_M = self._there(number_M + np.repeat(from_N * width, length_N))
        slot_M = self._there(np.repeat(slot_N, length_N))
        column_M = self._there((number_M + np.repeat(self.written - length_N, length_N)) % self.size)
        caches = iter(self.caches)

        def keep(from_M: Tensor, key_NGD: Tensor, value_NGD: Tensor) -> None:
            cache_2SGTD = next(caches).unflatten(1, (-1, self.key_heads))
            for cache_SGTD, read_NGD in zip(cache_2SGTD, (self.parts.in_order(key_NGD, -1), value_NGD), strict=True):
                cache_SGTD[slot_M, :, column_M] = read_NGD[from_M].to(cache_SGTD.dtype)

        if llama.readable(self.lm.body):
            there_PT = self._there(np.arange(width) < length_P[:, None])
            texts = PackedTokens.padded(tokens_PT, there_PT, self.lm.body.dtype)
            on_layer = partial(keep, texts.number(place_M))
            return llama.read(self.lm.body, texts, texts.number(last_P), on_layer=on_layer)[0]
        cache = DynamicCache(config=self.lm.module.config)
        with wide_products():
            output = self.lm.body(input_ids=tokens_PT, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            keep(place_M, *(x.transpose(1, 2).flatten(0, 1) for x in (layer.keys, layer.values)))
        states: Tensor = output.last_hidden_state.flatten(0, 1)[last_P]
        return states

    def _settle(self) -> None:
        """What each step needs to know of the rows there are now."""
        whole = np.array_equal(self.slot_B, np.arange(len(self.place_S)))
        self.apart_B = None if whole else self._there(self.slot_B)
        self.since = int(self.begun_S[self.slot_B].min(initial=self.written))

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        since = self.since - self.since % self.size % ALIGNED
        column, first, seen = self.written % self.size, since % self.size, self.written + 1 - since
        if self.lm.compiled or first + seen > self.size:
            first, seen = 0, self.size
        if self.apart_B is None:
            self.token_S.copy_(token_B)
        else:  # slots that have ended write too: nobody reads it
            self.token_S[self.apart_B] = token_B
            self.place_S.clamp_(max=self.size - 1)
        self.unseen_Z1T.select(-1, column).zero_()
        where = self.column_1.fill_(column) if self.lm.compiled else column
        state_SH = self.step(self, self.token_S, self.place_S, where, first, self.unseen_Z1T.narrow(-1, first, seen))
        self.state_BH = state_SH if self.apart_B is None else state_SH[self.apart_B]
        self.place_S.add_(1)
        self.written += 1

    def _there(self, numbers: np.ndarray) -> Tensor:
        """Numbers of the host on the model's device."""
        return torch.from_numpy(numbers).to(self.lm.device)

    def _move_together(self) -> None:
        kept = self._there(self.slot_B)

        def moved(x: Tensor, axis: int) -> Tensor:
            by_slots: Tensor = x.unflatten(axis, (-1, self.key_heads))
            return by_slots.index_select(axis, kept).flatten(axis, axis + 1)

        for layer, cache_2ZTD in enumerate(self.caches):  # one by one: old and new ones are not held all at once
            self.caches[layer] = moved(cache_2ZTD, 1)
        self.unseen_Z1T, self.place_S, self.token_S = moved(self.unseen_Z1T, 0), self.place_S[kept], self.token_S[kept]
        self.begun_S, self.slot_B = self.begun_S[self.slot_B], np.arange(len(kept))

    def _through_the_layers(
        self, token_S: Tensor, place_S: Tensor, column: Tensor | int, first: int, unseen_Z1T: Tensor
    ) -> Tensor:
        """[S, H]: the states behind the tokens, which stand at these places of their texts, and all in one column.

        `unseen` tells of the columns from `first` on; the others are not read.
        """
        parts, key_heads, (rows, _, seen) = self.parts, self.key_heads, unseen_Z1T.shape
        state_SH = self.lm.body.embed_tokens(token_S)
        turns = parts.turns(place_S)
        for layer, cache_2ZTD in zip(self.layers, self.caches, strict=True):
            heads_SKD = layer.qkv(layer.before_attention(state_SH)).view(len(token_S), -1, cache_2ZTD.shape[-1])
            if layer.of_queries_and_keys is not None:
                turned_SKD = heads_SKD[:, :-key_heads]
                turned_SKD.copy_(layer.of_queries_and_keys(turned_SKD))
            heads_SKD = parts.turned(heads_SKD, turns).to(cache_2ZTD.dtype)
            new_2SGD = heads_SKD[:, -2 * key_heads :].unflatten(1, (2, -1)).transpose(0, 1)
            if isinstance(column, int):
                cache_2ZTD.select(2, column).view(new_2SGD.shape).copy_(new_2SGD)
            else:
                cache_2ZTD.index_copy_(2, column, new_2SGD.flatten(1, 2)[:, :, None])
            keys_ZTD, values_ZTD = cache_2ZTD.narrow(2, first, seen).unbind()
            queries_ZQD = heads_SKD[:, : -2 * key_heads].reshape(rows, -1, cache_2ZTD.shape[-1])
            attended_ZQD = parts.attended(queries_ZQD, keys_ZTD, values_ZTD, unseen_Z1T, layer.scale)
            state_SH = layer.out(attended_ZQD.reshape(len(token_S), -1), state_SH)
            gate, up = layer.gate_up(layer.before_mlp(state_SH)).chunk(2, dim=-1)
            state_SH = layer.down(silu(gate).mul_(up), state_SH)
        return self.norm(state_SH)


@dataclass(frozen=True)
class _Layer:
    """One layer, as `LlamaDecoder` reads it."""

    before_attention: Callable[[Tensor], Tensor]
    qkv: Product
    of_queries_and_keys: Callable[[Tensor], Tensor] | None
    scale: float
    out: Product
    before_mlp: Callable[[Tensor], Tensor]
    gate_up: Product
    down: Product

    @staticmethod
    def of(layer: Any, parts: DecodeOps, rows: int | None) -> _Layer:
        """Of a layer of the model; `rows` as of `thin`."""
        attention, mlp = layer.self_attn, layer.mlp
        turned = attention.q_proj, attention.k_proj
        weights = [parts.in_order(merged_weight(part), 0) for part in turned]
        biases = [None if part.bias is None else parts.in_order(part.bias, 0) for part in turned]
        of_queries_and_keys = None
        if hasattr(attention, "q_norm"):
            norms = zip((attention.q_norm, attention.k_norm), weights, strict=True)
            by_heads = [norm.weight.expand(len(weight) // attention.head_dim, -1) for norm, weight in norms]
            of_queries_and_keys = parts.norm(parts.in_order(torch.cat(by_heads), -1))

        def together(*linears: nn.Linear) -> Product:
            return prepacked_linear([merged_weight(part) for part in linears], [part.bias for part in linears], rows)

        return _Layer(
            before_attention=parts.norm(layer.input_layernorm.weight),
            qkv=prepacked_linear([*weights, merged_weight(attention.v_proj)], [*biases, attention.v_proj.bias], rows),
            of_queries_and_keys=of_queries_and_keys,
            scale=attention.scaling,
            out=together(attention.o_proj),
            before_mlp=parts.norm(layer.post_attention_layernorm.weight),
            gate_up=together(mlp.gate_proj, mlp.up_proj),
            down=together(mlp.down_proj),
        )
