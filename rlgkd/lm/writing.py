"""Texts written on, token by token: by the model's own forward pass, or by its layers written out for one token.

The second is for decoding, where products are thin and what surrounds them weighs as much: one token a row, keys and
values into caches of their final size, and on a CPU the weights laid out once for products of that many rows. It knows
the Llama family (`FAMILIES`), whose layers differ by a bias or a norm, LoRA's adapters merged into the weights; other
models, and those whose layers have been changed (quantised weights), write with their own forward pass. Both write the
same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu, softmax
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlgkd.lm.lora import linear_at_heart, merged_weight
from rlgkd.lm.model import LanguageModel, Progress

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3")
"""Rotary embeddings that depend on the position alone."""
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

    def keep(self, rows: Tensor, *, complete: bool) -> None:
        """Go on with these rows alone; `complete` says that no other is admitted any more."""
        ...

    def admit(self, prompts: Sequence[Sequence[int]], from_B: Tensor) -> None:
        """Read prompts; behind the rows there are begins one for each entry of `from_B`, which names its prompt."""
        ...

    def write(self, token_B: Tensor) -> None:
        """Put one token behind each row."""
        ...


def writer(lm: LanguageModel, rows: int, size: int) -> Writer:
    """A writer of at most so many rows at a time, none of them longer than `size` with its prompt."""
    return LayersWriter(lm, rows, size) if written_out(lm) else ModelWriter(lm)


def written_out(lm: LanguageModel) -> bool:
    """Whether the layers are those that `LayersWriter` knows."""
    config = lm.module.config
    if config.model_type not in FAMILIES or config._attn_implementation not in ("sdpa", "eager"):
        return False
    plain = not getattr(config, "sliding_window", None) and config.hidden_act == "silu"
    linears = [part for name, part in lm.body.named_modules() if name.endswith("_proj")]
    return plain and config.rope_parameters["rope_type"] in ROPES and all(map(linear_at_heart, linears))


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

    def keep(self, rows: Tensor, *, complete: bool) -> None:
        """As of `Writer`."""
        assert self.state_BH is not None and self.progress is not None
        self.state_BH = self.state_BH[rows]
        self.progress.keep(rows)

    def admit(self, prompts: Sequence[Sequence[int]], from_B: Tensor) -> None:
        """As of `Writer`."""
        state_PH, progress = self.lm.prefill(prompts)
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

    The cache has S slots of T places; the slot of each of the B rows, and how many tokens stand in a slot, are told
    apart, so that a row that begins takes the slot of one that has ended. G key heads of size D, each of which answers
    several query heads: they stand as so many queries of one head.

    If the model is to be compiled, shapes stay the same: all slots and places take part in each step.
    """

    def __init__(self, lm: LanguageModel, rows: int, size: int) -> None:
        self.lm = lm
        config, device = lm.module.config, lm.device
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else lm.head.weight.dtype
        heads = config.num_key_value_heads
        depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.keys, self.values = (
            [torch.zeros(rows, heads, size, depth, dtype=dtype, device=device) for _ in lm.body.layers]
            for _ in ("keys", "values")
        )
        self.length_S = torch.zeros(rows, dtype=torch.long, device=device)
        self.slot_B = self.length_S[:0]
        self.state_BH = lm.head.weight.new_empty(0, lm.head.in_features)
        packed = None if lm.compiled else rows  # torch's compiler does not take what oneDNN has laid out
        self.layers = [_Layer.of(layer, packed) for layer in lm.body.layers]
        weight_VH, bias_V = lm.cut_head
        self.head = product([weight_VH], [bias_V], rows)
        self.eps = config.rms_norm_eps
        self.place_T = torch.arange(size, device=device)
        self.cos_TD, sin_TD = (table[0] for table in lm.body.rotary_emb(self.state_BH, self.place_T[None]))
        # Each half of a head is turned by the other (Su et al. 2021, arXiv 2104.09864): the first by its negative.
        self.sin_TD = sin_TD * torch.where(self.place_T.new_tensor(range(depth)) < depth // 2, -1, 1)
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

    def keep(self, rows: Tensor, *, complete: bool) -> None:
        """As of `Writer`."""
        self.slot_B, self.state_BH = self.slot_B[rows], self.state_BH[rows]
        if complete and not self.lm.compiled and 0 < len(rows) < CROWDED * len(self.length_S):
            self._move_together()

    def admit(self, prompts: Sequence[Sequence[int]], from_B: Tensor) -> None:
        """As of `Writer`. Padding stands behind the prompts, where no token looks."""
        device = self.lm.device
        length_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(length_P.max())
        tokens = [[*prompt, *[self.lm.pad] * (longest - len(prompt))] for prompt in prompts]
        cache = DynamicCache(config=self.lm.module.config)
        states_PTH = self.lm.body(
            input_ids=torch.tensor(tokens, device=device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        free = torch.ones_like(self.length_S, dtype=torch.bool)
        free[self.slot_B] = False
        slot_N = free.nonzero()[: len(from_B), 0]
        for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            keys[slot_N, :, :longest] = layer.keys[from_B].to(keys.dtype)
            values[slot_N, :, :longest] = layer.values[from_B].to(keys.dtype)
        self.length_S[slot_N] = length_P[from_B]
        self.slot_B = torch.cat([self.slot_B, slot_N])
        self.state_BH = torch.cat([self.state_BH, states_PTH[from_B, length_P[from_B] - 1]])

    def write(self, token_B: Tensor) -> None:
        """As of `Writer`."""
        # In slots that have ended the last place is written again and again: nobody reads it.
        token_S = token_B.new_zeros(len(self.length_S)).index_copy(0, self.slot_B, token_B)
        upto = len(self.place_T) if self.lm.compiled else int(self.length_S[self.slot_B].max()) + 1
        place_S = self.length_S.clamp(max=upto - 1)
        seen_ST = self.place_T[:upto] <= place_S[:, None]
        unseen_S11T = None
        if self.lm.compiled or not bool(seen_ST.all()):
            unseen_ST = self.keys[0].new_zeros(seen_ST.shape).masked_fill(~seen_ST, -torch.inf)
            unseen_S11T = unseen_ST[:, None, None]
        self.state_BH = self.step(self, token_S, place_S, unseen_S11T, upto)[self.slot_B]
        self.length_S[self.slot_B] += 1

    def _move_together(self) -> None:
        kept = self.slot_B
        upto = int(self.length_S[kept].max())
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                cache[: len(kept), :, :upto] = cache[kept, :, :upto]
                caches[layer] = cache[: len(kept)]
        self.length_S = self.length_S[kept]
        self.slot_B = torch.arange(len(kept), device=kept.device)

    def _through_the_layers(self, token_S: Tensor, place_S: Tensor, unseen_S11T: Tensor | None, upto: int) -> Tensor:
        """[S, H]: the states behind the tokens, which stand at these places; of the cache the first `upto` are read."""
        state_SH = self.lm.body.embed_tokens(token_S)
        cos_S1D, sin_S1D = self.cos_TD[place_S, None], self.sin_TD[place_S, None]
        row_S = torch.arange(len(token_S), device=token_S.device)
        for layer, keys_SGTD, values_SGTD in zip(self.layers, self.keys, self.values, strict=True):
            heads, depth = keys_SGTD.shape[1], keys_SGTD.shape[3]
            x = rms_norm(state_SH, state_SH.shape[-1:], layer.before_attention, self.eps)
            qkv = layer.qkv(x).view(len(x), -1, depth)
            turned, new_values = qkv.split([qkv.shape[1] - heads, heads], dim=1)
            if layer.query_and_key_norm is not None:
                turned = rms_norm(turned, turned.shape[-1:], None, self.eps) * layer.query_and_key_norm
            turned = torch.addcmul(turned * cos_S1D, turned.roll(depth // 2, -1), sin_S1D).to(keys_SGTD.dtype)
            queries, new_keys = turned.split([turned.shape[1] - heads, heads], dim=1)
            keys_SGTD[row_S, :, place_S] = new_keys
            values_SGTD[row_S, :, place_S] = new_values.to(keys_SGTD.dtype)
            attended = _attended(
                queries.unflatten(1, (heads, -1)), keys_SGTD[:, :, :upto], values_SGTD[:, :, :upto], unseen_S11T,
                layer.scale,
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
    query_and_key_norm: Tensor | None
    """[query and key heads, D]."""
    scale: float
    out: Product
    before_mlp: Tensor
    gate_up: Product
    down: Product

    @staticmethod
    def of(layer: Any, rows: int | None) -> _Layer:
        """Of a layer of the model; `rows` as of `product`."""
        attention, mlp = layer.self_attn, layer.mlp

        def together(*parts: nn.Linear) -> Product:
            return product([merged_weight(part) for part in parts], [part.bias for part in parts], rows)

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


def product(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> Product:
    """The product of some rows with weights [out, in] that stand below each other, plus biases.

    On a CPU, and if the number of rows is told, the weights are copied into the order in which oneDNN reads them, made
    for so many rows: the products of decoding then take a half to a fifth of the time. Else they stay where they are.
    """
    if rows is None or not packs(weights[0]):

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
    """Whether oneDNN can lay out this weight: in float32 alone, on a CPU, where torch has it."""
    there = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and there


def _query_and_key_norm(attention: Any) -> Tensor:
    depth = attention.head_dim
    heads = attention.q_proj.out_features // depth, attention.k_proj.out_features // depth
    norms = attention.q_norm, attention.k_norm
    return torch.cat([norm.weight.expand(n, -1) for norm, n in zip(norms, heads, strict=True)])


def _attended(
    queries_SGQD: Tensor, keys_SGTD: Tensor, values_SGTD: Tensor, unseen_S11T: Tensor | None, scale: float
) -> Tensor:
    """[S, G, Q, D]: attention of the queries of one token, with -inf added where it may not look.

    Written out in float32 on a CPU, where torch's kernel is made for blocks of tokens and takes up to twice as long for
    one; in half precision that kernel adds up in float32, as products would not.
    """
    if queries_SGQD.device.type != "cpu" or queries_SGQD.dtype.itemsize < 4:
        return scaled_dot_product_attention(queries_SGQD, keys_SGTD, values_SGTD, attn_mask=unseen_S11T, scale=scale)
    scores_SGQT = (queries_SGQD @ keys_SGTD.mT).mul_(scale)
    if unseen_S11T is not None:
        scores_SGQT += unseen_S11T
    return softmax(scores_SGQT, -1) @ values_SGTD
