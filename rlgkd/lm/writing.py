"""Texts written on, token by token: by the model's own forward pass, or by its layers written out for one token.

The second is for decoding, where products are thin and what surrounds them weighs as much: one token a row, keys and
values into caches of their final size, and on a CPU the weights laid out once for products of that many rows. It knows
the Llama family (rlgkd.lm.layers), whose layers differ by a bias or a norm, LoRA's adapters merged into the weights;
other models, and those whose layers have been changed (quantised weights), write with their own forward pass. Both
write the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu, softmax
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlgkd.lm import layers
from rlgkd.lm.lora import linear_at_heart, merged_weight
from rlgkd.lm.model import LanguageModel, Progress
from rlgkd.lm.passes import normed, signed, turned
from rlgkd.lm.products import Product, thin, wide_products
from rlgkd.lm.texts import Texts

CROWDED = 0.75
"""Rows are moved together when fewer than this share of them are still written: moving costs a copy of the cache."""


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
    return LayersWriter(lm, rows, size) if written_out(lm) else ModelWriter(lm)


def written_out(lm: LanguageModel) -> bool:
    """Whether the layers are those that `LayersWriter` knows."""
    linears = (part for name, part in lm.body.named_modules() if name.endswith("_proj"))
    return layers.known(lm.module) and all(map(linear_at_heart, linears))


class ModelWriter:
    """Writes with the model's forward pass."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.state_BH: Tensor | None = None
        self.progress: Progress | None = None

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


class LayersWriter:
    """Writes with the layers of the Llama family, written out for one token a row.

    The cache has S slots, one for each of the B rows and for those that have ended, whose slots wait for others. A slot
    has T columns. In a step all rows write to the same column, wherever they are in their texts: the cache is a ring,
    and a row that begins has its prompt in the columns before the next. Keys are rotated already, so their order means
    nothing to attention; the columns that a slot may see are told by `unseen`. Once the ring has gone round, a step
    reads all of it, until no row is left. G key heads of size D, each of which answers several query heads: they stand
    as so many queries of one head. A layer's heads are in the order queries, keys, values, K in all; the last 2 G are
    cached.

    If the model is to be compiled, shapes stay the same: all slots and columns take part in each step.
    """

    def __init__(self, lm: LanguageModel, rows: int, size: int) -> None:
        self.lm, self.size = lm, size
        laid_out = None if lm.compiled else rows  # torch's compiler does not take what oneDNN has laid out
        weight_VH, bias_V = lm.cut_head
        # The largest first: it takes the place in memory that its gradient has left, before small ones are put there.
        self.head = thin([weight_VH], [bias_V], rows)
        config, device = lm.module.config, lm.device
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else lm.head.weight.dtype
        self.key_heads = config.num_key_value_heads
        depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.caches = [  # keys and values apart: each is [S G, T, D] to attention's products, without a copy
            torch.zeros(2, rows, self.key_heads, size, depth, dtype=dtype, device=device) for _ in lm.body.layers
        ]
        self.unseen_SG1T = torch.full((rows, self.key_heads, 1, size), -torch.inf, dtype=dtype, device=device)
        self.place_S = torch.zeros(rows, dtype=torch.long, device=device)
        self.written = self.upto = 0
        self.column_T1 = torch.arange(size, device=device).split(1)
        self.slot_B = np.zeros(0, dtype=np.int64)
        self.apart_B: Tensor | None = None
        self.state_BH = lm.head.weight.new_empty(0, lm.head.in_features)
        self.layers = [_Layer.of(layer, laid_out) for layer in lm.body.layers]
        self.eps = config.rms_norm_eps
        self.root_of_eps = self.state_BH.new_tensor(self.eps**0.5)
        place_T = torch.arange(size, device=device)
        cos_TD, sin_TD = (table[0] for table in lm.body.rotary_emb(self.state_BH, place_T[None]))
        turned = config.num_attention_heads + self.key_heads
        self.cos_TKD, self.sin_TKD = (  # values are turned by nothing
            torch.cat([table[:, None].expand(-1, turned, -1), table.new_full((size, self.key_heads, depth), still)], 1)
            for table, still in ((cos_TD, 1), (signed(sin_TD), 0))
        )
        # Not bound to self: what holds itself lives, with all its weights, until Python looks for circles.
        through = LayersWriter._through_the_layers
        self.step = torch.compile(through) if lm.compiled else through

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
            self.written = self.upto = int(length_N.max())
        if length_N.max() > self.written:  # it begins at the ring's end
            self.upto = self.size
        free_N = np.setdiff1d(np.arange(len(self.place_S)), self.slot_B)[: len(places)]
        back_T = (self.written - 1 - np.arange(self.size)) % self.size  # how far a column is behind the latest
        behind_NT = self._there(back_T >= length_N[:, None])
        slot_N = self._there(free_N)
        unseen_NT = self.unseen_SG1T.new_zeros(behind_NT.shape).masked_fill_(behind_NT, -torch.inf)
        self.unseen_SG1T[slot_N] = unseen_NT[:, None, None]
        self.place_S[slot_N] = self._there(length_N)
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
        rows = [[*prompt, *[self.lm.pad] * (width - len(prompt))] for prompt in prompts]
        tokens_PT = torch.tensor(rows, device=self.lm.device)
        last_P = self._there(np.arange(len(prompts)) * width + length_P - 1)
        # Each of the M tokens that are copied comes from a place in the flattened [P, T] and goes to a slot's column.
        length_N = length_P[from_N]
        number_M = np.concatenate([np.arange(length) for length in length_N])
        place_M = self._there(number_M + np.repeat(from_N * width, length_N))
        slot_M = self._there(np.repeat(slot_N, length_N))
        column_M = self._there((number_M + np.repeat(self.written - length_N, length_N)) % self.size)
        caches = iter(self.caches)

        def keep(from_M: Tensor, *read: Tensor) -> None:
            for cache_SGTD, read_NGD in zip(next(caches), read, strict=True):
                cache_SGTD[slot_M, :, column_M] = read_NGD[from_M].to(cache_SGTD.dtype)

        if layers.readable(self.lm.body):
            there_PT = self._there(np.arange(width) < length_P[:, None])
            texts = Texts.padded(tokens_PT, there_PT, self.lm.body.dtype)
            on_layer = partial(keep, texts.number(place_M))
            return layers.read(self.lm.body, texts, texts.number(last_P), on_layer=on_layer)[0]
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

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        column, self.written = self.written % self.size, self.written + 1
        self.upto = min(max(self.upto, column + 1), self.size)
        token_S = token_B
        if self.apart_B is not None:  # slots that have ended write too: nobody reads it
            token_S = torch.zeros_like(self.place_S).index_copy(0, self.apart_B, token_B)
        column_1 = self.column_T1[column]
        self.unseen_SG1T.index_fill_(-1, column_1, 0.0)
        unseen_SG1T = self.unseen_SG1T if self.lm.compiled else self.unseen_SG1T[..., : self.upto]
        state_SH = self.step(self, token_S, self.place_S, column_1, unseen_SG1T)
        self.state_BH = state_SH if self.apart_B is None else state_SH[self.apart_B]
        self.place_S.add_(1).clamp_(max=self.size - 1)

    def _there(self, numbers: np.ndarray) -> Tensor:
        """Numbers of the host on the model's device."""
        return torch.from_numpy(numbers).to(self.lm.device)

    def _move_together(self) -> None:
        kept = self._there(self.slot_B)
        for layer, cache_2SGTD in enumerate(self.caches):
            together_2SGTD = cache_2SGTD.new_zeros(2, len(kept), *cache_2SGTD.shape[2:])
            together_2SGTD[:, :, :, : self.upto] = cache_2SGTD[:, kept, :, : self.upto]
            self.caches[layer] = together_2SGTD
        self.unseen_SG1T, self.place_S = self.unseen_SG1T[kept], self.place_S[kept]
        self.slot_B = np.arange(len(kept))

    def _through_the_layers(self, token_S: Tensor, place_S: Tensor, column_1: Tensor, unseen_SG1T: Tensor) -> Tensor:
        """[S, H]: the states behind the tokens, which stand at these places of their texts, and all in one column."""
        state_SH = self.lm.body.embed_tokens(token_S)
        cos_SKD, sin_SKD = self.cos_TKD.index_select(0, place_S), self.sin_TKD.index_select(0, place_S)
        for layer, cache_2SGTD in zip(self.layers, self.caches, strict=True):
            heads_SKD = layer.qkv(self._normed(state_SH, layer.before_attention)).view_as(cos_SKD)
            if layer.query_and_key_norm is not None:
                turned_SKD = heads_SKD[:, : -self.key_heads]
                turned_SKD.copy_(self._normed(turned_SKD, layer.query_and_key_norm))
            heads_SKD = turned(heads_SKD, cos_SKD, sin_SKD).to(cache_2SGTD.dtype)
            queries_SGQD = heads_SKD[:, : -2 * self.key_heads].unflatten(1, (self.key_heads, -1))
            new_2SG1D = heads_SKD[:, -2 * self.key_heads :].unflatten(1, (2, -1)).transpose(0, 1)[:, :, :, None]
            cache_2SGTD.index_copy_(3, column_1, new_2SG1D)
            keys_SGTD, values_SGTD = cache_2SGTD[..., : unseen_SG1T.shape[-1], :].unbind()
            attended_SGQD = _attended(queries_SGQD, keys_SGTD, values_SGTD, unseen_SG1T, layer.scale)
            state_SH = layer.out(attended_SGQD.reshape(len(token_S), -1), state_SH)
            gate, up = layer.gate_up(self._normed(state_SH, layer.before_mlp)).chunk(2, dim=-1)
            state_SH = layer.down(silu(gate).mul_(up), state_SH)
        return self._normed(state_SH, self.lm.body.norm.weight)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """As of rlgkd.lm.passes, where nothing adds up in more than float32."""
        return normed(x, weight, self.root_of_eps) if _plain(x) else rms_norm(x, x.shape[-1:], None, self.eps) * weight


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer, as `LayersWriter` reads them."""

    before_attention: Tensor
    qkv: Product
    query_and_key_norm: Tensor | None
    """[query and key heads, D]."""
    scale: float
    out: Product
    before_mlp: Tensor
    gate_up: Product
    down: Product

    @staticmethod
    def of(layer: Any, rows: int | None) -> _Layer:
        """Of a layer of the model; `rows` as of `thin`."""
        attention, mlp = layer.self_attn, layer.mlp

        def together(*parts: nn.Linear) -> Product:
            return thin([merged_weight(part) for part in parts], [part.bias for part in parts], rows)

        return _Layer(
            before_attention=layer.input_layernorm.weight,
            qkv=together(attention.q_proj, attention.k_proj, attention.v_proj),
            query_and_key_norm=_query_and_key_norm(attention) if hasattr(attention, "q_norm") else None,
            scale=attention.scaling,
            out=together(attention.o_proj),
            before_mlp=layer.post_attention_layernorm.weight,
            gate_up=together(mlp.gate_proj, mlp.up_proj),
            down=together(mlp.down_proj),
        )


def _query_and_key_norm(attention: Any) -> Tensor:
    depth = attention.head_dim
    heads = attention.q_proj.out_features // depth, attention.k_proj.out_features // depth
    norms = attention.q_norm, attention.k_norm
    return torch.cat([norm.weight.expand(n, -1) for norm, n in zip(norms, heads, strict=True)])


def _plain(x: Tensor) -> bool:
    """Whether what follows is written out: in float32 on a CPU, where the fewest calls count.

    torch's kernel for attention is made there for blocks of tokens and takes up to twice as long for one, its norm is
    ten calls. In half precision both add up in float32, as what is written out would not.
    """
    return x.device.type == "cpu" and x.dtype.itemsize >= 4


def _attended(
    queries_SGQD: Tensor, keys_SGTD: Tensor, values_SGTD: Tensor, unseen_SG1T: Tensor, scale: float
) -> Tensor:
    """[S, G, Q, D]: attention of the queries of one token, with -inf added where it may not look."""
    if not _plain(queries_SGQD):
        return scaled_dot_product_attention(queries_SGQD, keys_SGTD, values_SGTD, attn_mask=unseen_SG1T, scale=scale)
    queries, keys, values, unseen = (t.flatten(0, 1) for t in (queries_SGQD, keys_SGTD, values_SGTD, unseen_SG1T))
    shares = softmax(torch.baddbmm(unseen, queries, keys.mT, alpha=scale), -1)
    return torch.bmm(shares, values).view_as(queries_SGQD)
