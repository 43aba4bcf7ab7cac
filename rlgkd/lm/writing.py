"""Texts written on, token by token: by the model's own forward pass, or by its layers written out for one token.

The second is for decoding, where products are thin and what surrounds them weighs as much: one token a row, keys and
values into caches of their final size, and on a CPU the weights laid out once for products of that many rows. It knows
the Llama family (`FAMILIES`), whose layers differ by a bias or a norm; other models, and those whose layers have been
changed (adapters, quantised weights), write with their own forward pass. Both write the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from rlgkd.lm.model import LanguageModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3")
"""Rotary embeddings that depend on the position alone."""
CROWDED = 0.75
"""Rows are moved together when fewer than this share of them are still written: moving costs a copy of the cache."""


class Writer(Protocol):
    """Some rows on their way."""

    def logits(self) -> Tensor:
        """[B, V]: of the next token of each row, tempered."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        ...

    def write(self, token_B: Tensor) -> None:
        """Put one token behind each row."""
        ...


def begin(lm: LanguageModel, prompts: Sequence[Sequence[int]], *, group: int, room: int) -> Writer:
    """Read each prompt once, for `group` rows of at most `room` new tokens each."""
    return LayersWriter(lm, prompts, group, room) if written_out(lm) else ModelWriter(lm, prompts, group)


def written_out(lm: LanguageModel) -> bool:
    """Whether the layers are those that `LayersWriter` knows."""
    config = lm.module.config
    if config.model_type not in FAMILIES or config._attn_implementation not in ("sdpa", "eager"):
        return False
    plain = not getattr(config, "sliding_window", None) and config.hidden_act == "silu"
    linears = [part for name, part in lm.body.named_modules() if name.endswith("_proj")]
    return plain and config.rope_parameters["rope_type"] in ROPES and all(type(part) is nn.Linear for part in linears)


class ModelWriter:
    """Writes with the model's forward pass."""

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], group: int) -> None:
        self.lm = lm
        self.state_BH, self.progress = lm.prefill(prompts, group=group)

    def logits(self) -> Tensor:
        """As of `Writer`."""
        return self.lm.logits(self.state_BH)

    def keep(self, rows: Tensor) -> None:
        """As of `Writer`; the states are those of the next `write`."""
        self.progress.keep(rows)

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        self.state_BH = self.lm.advance(token_B, self.progress)


class LayersWriter:
    """Writes with the layers of the Llama family, written out for one token a row.

    S rows of the cache, of which some may have ended; B of them are still written. G key heads of size D, each of which
    answers several query heads: they stand as so many queries of one head.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], group: int, room: int) -> None:
        state_PH, progress = lm.prefill(prompts)
        self.lm, config, device = lm, lm.module.config, lm.device
        from_S = torch.arange(len(prompts), device=device).repeat_interleave(group)
        self.slot_B, self.width = torch.arange(len(from_S), device=device), progress.attention_BT.shape[1]
        self.state_BH = state_PH[from_S]
        size = self.width + room - 1  # nothing is read behind the last token
        self.keys, self.values = (
            [_enlarged(getattr(layer, name), from_S, size) for layer in progress.cache.layers]
            for name in ("keys", "values")
        )
        attention_PT = progress.attention_BT
        self.place_S = attention_PT.sum(1)[from_S]
        self.padding_S11T: Tensor | None = None
        if bool((attention_PT == 0).any()):
            padding = torch.zeros(len(from_S), 1, 1, size, dtype=state_PH.dtype, device=device)
            padding[:, 0, 0, : self.width].masked_fill_(attention_PT[from_S] == 0, torch.finfo(state_PH.dtype).min)
            self.padding_S11T = padding
        rows = len(from_S)
        self.layers = [_Layer.of(layer, rows) for layer in lm.body.layers]
        bias = cast("Tensor | None", lm.head.bias)
        self.head = product([lm.head.weight[: lm.vocabulary]], [None if bias is None else bias[: lm.vocabulary]], rows)
        self.eps = config.rms_norm_eps
        places = torch.arange(int(self.place_S.max()) + room, device=device)[None]
        self.cos_TD, self.sin_TD = (table[0] for table in lm.body.rotary_emb(state_PH, places))

    def logits(self) -> Tensor:
        """As of `Writer`."""
        return self.lm.tempered(self.head(self.state_BH))

    def keep(self, rows: Tensor) -> None:
        """As of `Writer`."""
        self.slot_B = self.slot_B[rows]
        if len(self.slot_B) >= CROWDED * len(self.place_S):
            return
        kept = self.slot_B
        for cache in (*self.keys, *self.values):
            cache[: len(kept), :, : self.width] = cache[kept, :, : self.width]
        self.keys, self.values = ([cache[: len(kept)] for cache in caches] for caches in (self.keys, self.values))
        self.place_S = self.place_S[kept]
        if self.padding_S11T is not None:
            self.padding_S11T = self.padding_S11T[kept]
        self.slot_B = torch.arange(len(kept), device=kept.device)

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        if len(self.slot_B) == len(self.place_S):
            token_S = token_B
        else:  # rows that have ended write something that nobody reads
            token_S = token_B.new_zeros(len(self.place_S)).index_copy(0, self.slot_B, token_B)
        state_SH = self._through_the_layers(token_S)
        self.width += 1
        self.place_S = self.place_S + 1
        self.state_BH = state_SH if token_S is token_B else state_SH[self.slot_B]

    def _through_the_layers(self, token_S: Tensor) -> Tensor:
        state_SH = self.lm.body.embed_tokens(token_S)
        cos_S1D, sin_S1D = self.cos_TD[self.place_S, None], self.sin_TD[self.place_S, None]
        upto = self.width + 1
        padding = None if self.padding_S11T is None else self.padding_S11T[..., :upto]
        for layer, keys_SGTD, values_SGTD in zip(self.layers, self.keys, self.values, strict=True):
            heads, depth = keys_SGTD.shape[1], keys_SGTD.shape[3]
            x = rms_norm(state_SH, state_SH.shape[-1:], layer.before_attention, self.eps)
            qkv = layer.qkv(x).view(len(x), -1, depth)
            queries, new_keys, new_values = qkv.split([qkv.shape[1] - 2 * heads, heads, heads], dim=1)
            if layer.query_norm is not None and layer.key_norm is not None:
                queries = rms_norm(queries, queries.shape[-1:], layer.query_norm, self.eps)
                new_keys = rms_norm(new_keys, new_keys.shape[-1:], layer.key_norm, self.eps)
            keys_SGTD[:, :, self.width] = _rotated(new_keys, cos_S1D, sin_S1D)
            values_SGTD[:, :, self.width] = new_values
            attended = scaled_dot_product_attention(
                _rotated(queries, cos_S1D, sin_S1D).unflatten(1, (heads, -1)), keys_SGTD[:, :, :upto],
                values_SGTD[:, :, :upto], attn_mask=padding, scale=layer.scale,
            )  # fmt: skip
            state_SH = state_SH + layer.out(attended.reshape(len(x), -1))
            x = rms_norm(state_SH, state_SH.shape[-1:], layer.before_mlp, self.eps)
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            state_SH = state_SH + layer.down(silu(gate) * up)
        return rms_norm(state_SH, state_SH.shape[-1:], self.lm.body.norm.weight, self.eps)


Product = Callable[[Tensor], Tensor]
"""[S, in] -> [S, out]."""


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer, as `LayersWriter` reads them."""

    before_attention: Tensor
    qkv: Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    scale: float
    out: Product
    before_mlp: Tensor
    gate_up: Product
    down: Product

    @staticmethod
    def of(layer: Any, rows: int) -> _Layer:
        """Of a layer of the model, for products of so many rows."""
        attention, mlp = layer.self_attn, layer.mlp

        def together(*parts: nn.Linear) -> Product:
            return product([part.weight for part in parts], [part.bias for part in parts], rows)

        return _Layer(
            before_attention=layer.input_layernorm.weight,
            qkv=together(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
            key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
            scale=attention.scaling,
            out=together(attention.o_proj),
            before_mlp=layer.post_attention_layernorm.weight,
            gate_up=together(mlp.gate_proj, mlp.up_proj),
            down=together(mlp.down_proj),
        )


def product(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> Product:
    """The product of some rows with weights [out, in] that stand below each other, plus biases.

    On a CPU the weights are copied into the order in which oneDNN reads them, made for so many rows: the products of
    decoding then take a half to a fifth of the time. Elsewhere they are left where they are.
    """
    if not packs(weights[0]):

        def plain(x: Tensor) -> Tensor:
            made = [linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

        return plain
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    some = [bias for bias in biases if bias is not None]
    if some and len(some) < len(biases):
        some = [weight.new_zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    bias = torch.cat(some) if some else None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    run = torch.ops.mkldnn._linear_pointwise
    return lambda x: run(x, packed, bias, "none", [], "")


def packs(weight: Tensor) -> bool:
    """Whether oneDNN can lay out this weight: in float32, on a CPU, where torch has it."""
    there = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and bool(there)


def _enlarged(cache_PGTD: Tensor, from_S: Tensor, size: int) -> Tensor:
    """The rows that `from_S` names, with room for `size` tokens."""
    heads, width, depth = cache_PGTD.shape[1:]
    enlarged = cache_PGTD.new_empty(len(from_S), heads, size, depth)
    enlarged[:, :, :width] = cache_PGTD[from_S]
    return enlarged


def _rotated(x_SND: Tensor, cos_S1D: Tensor, sin_S1D: Tensor) -> Tensor:
    """Turn each head's two halves by the angles of its place (Su et al. 2021, arXiv 2104.09864)."""
    one, other = x_SND.chunk(2, dim=-1)
    return x_SND * cos_S1D + torch.cat([-other, one], dim=-1) * sin_S1D
