"""The Llama family's layers over whole texts, written out: hardly any padding, and little kept for the gradient.

A model's own forward pass multiplies padding too, makes a dozen small passes over what a norm or a rotation could do in
two, and keeps each of their results. Here products, norms and rotations see the N tokens that there are, one below the
other; only attention sees them as rows. The last layer goes on with those tokens alone whose states are asked for. What
a gradient needs is kept once (the input of a norm, not what it made of it) and the rest computed anew from it.

It knows the architectures of `FAMILIES`, and is used on a CPU in float32, where these passes weigh most; else a model's
own forward pass reads (rlgkd.lm.model). States and gradients are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlgkd.lm.fast.attention import Asked, attended
from rlgkd.lm.fast.autograd_ops import gated_product, normed, normed_products, signed, turned
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.linear import wide
from rlgkd.ops._gradient import wants_gradient

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3")
"""Rotary embeddings that depend on the position alone."""
BROADCAST = 64
"""Numbers of a head from which on its rotation is told once for all heads: to begin a loop over fewer takes torch
longer than to run it."""


def known(module: PreTrainedModel) -> bool:
    """Whether the layers are of an architecture that is written out, here and in rlgkd.lm.decoders."""
    config = module.config
    if config.model_type not in FAMILIES or config._attn_implementation not in ("sdpa", "eager"):
        return False
    plain = not getattr(config, "sliding_window", None) and config.hidden_act == "silu"
    return plain and config.rope_parameters["rope_type"] in ROPES


def readable(body: PreTrainedModel) -> bool:
    """Whether `read` takes the model, without its head, as it stands: known, unchanged, in float32, on a CPU.

    Hooks on its parts are not called.
    """
    if not known(body) or body.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    linears = (part for name, part in body.named_modules() if name.endswith("_proj"))
    plain = type(body.get_input_embeddings()) is nn.Embedding and all(type(part) is nn.Linear for part in linears)
    return plain and body.dtype == torch.float32


def read(
    body: Any,
    texts: PackedTokens,
    wanted_M: Tensor,
    *,
    head_VH: Tensor | None = None,
    on_layer: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """[M, H], the states of the wanted tokens, and the head's weight, through which its gradient shall go.

    Where that weight is the embedding too, its gradient is then formed as a whole, without a second one of its size.

    Args:
        body: A model without its head, one that is `readable`.
        texts: What it reads.
        wanted_M: Numbers among the N tokens; one may be wanted several times.
        head_VH: The head's weight, if the loss depends on the states through it.
        on_layer: Is given each layer's keys and values, rotated, each [N, G, D].
    """
    wanted_M, back_M = wanted_M.unique(return_inverse=True)  # sorted
    embed, pad = body.embed_tokens, body.embed_tokens.padding_idx
    if embed.weight is head_VH and wants_gradient(head_VH):
        state_NH, head_VH = cast("tuple[Tensor, Tensor]", cast(Any, _Tied).apply(texts.token_N, head_VH, pad))
    else:
        state_NH = embedding(texts.token_N, embed.weight, pad)
    cos_ND, sin_ND = (table[0] for table in body.rotary_emb(state_NH, texts.position_N[None]))
    copies = 1 if cos_ND.shape[1] >= BROADCAST else body.config.num_attention_heads
    turn = tuple(table[:, None].expand(-1, copies, -1).contiguous() for table in (cos_ND, signed(sin_ND)))
    root_of_eps = state_NH.new_tensor(body.config.rms_norm_eps**0.5)
    places = texts.place_N, texts.place_N[wanted_M]
    heads = body.config.num_key_value_heads
    of_all, of_wanted = Asked.of(texts, places, heads, body.config.num_attention_heads // heads)
    for number, layer in enumerate(body.layers):
        last = number == len(body.layers) - 1
        asked = (of_wanted, wanted_M) if last else (of_all, None)
        given = layer, root_of_eps, texts, turn, *asked, on_layer
        if layer.gradient_checkpointing and torch.is_grad_enabled():
            state_NH = cast(Any, checkpoint)(_layer, state_NH, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            state_NH = _layer(state_NH, *given)
    if not len(body.layers):
        state_NH = state_NH[wanted_M]
    return normed(state_NH, body.norm.weight, root_of_eps).index_select(0, back_M), head_VH


def _layer(
    state_NH: Tensor, layer: Any, root_of_eps: Tensor, texts: PackedTokens, turn: tuple[Tensor, Tensor], asked: Asked,
    wanted_M: Tensor | None, on_layer: Callable[[Tensor, Tensor], None] | None,
) -> Tensor:  # fmt: skip
    """[N, H], or [M, H] of the tokens that are wanted."""
    own, mlp, depth = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    norm = layer.input_layernorm.weight
    if wanted_M is None:
        query, key, value = normed_products(state_NH, norm, root_of_eps, own.q_proj, own.k_proj, own.v_proj)
        query_turn = turn
    else:
        key, value = normed_products(state_NH, norm, root_of_eps, own.k_proj, own.v_proj)
        state_NH = state_NH.index_select(0, wanted_M)
        (query,) = normed_products(state_NH, norm, root_of_eps, own.q_proj)
        query_turn = turn[0][wanted_M], turn[1][wanted_M]
    query, key, value = (x.unflatten(-1, (-1, depth)) for x in (query, key, value))
    if hasattr(own, "q_norm"):
        query = normed(query, own.q_norm.weight, root_of_eps)
        key = normed(key, own.k_norm.weight, root_of_eps)
    query, key = turned(query, *query_turn), turned(key, *(table[:, : key.shape[1]] for table in turn))
    if on_layer is not None:
        on_layer(key, value)
    seen = attended(query, key, value, texts, asked, own.scaling)
    state_NH = wide(seen.flatten(1), own.o_proj.weight, own.o_proj.bias).add_(state_NH)
    gate, up = normed_products(state_NH, layer.post_attention_layernorm.weight, root_of_eps, mlp.gate_proj, mlp.up_proj)
    return gated_product(gate, up, mlp.down_proj).add_(state_NH)


class _Tied(torch.autograd.Function):
    """A weight as embedding and as head: the rows that were read, and the weight itself.

    As of any embedding, reading the padding token, if there is one, has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, token_N: Tensor, weight_VH: Tensor, pad: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(token_N)
        ctx.set_materialize_grads(False)
        ctx.like, ctx.pad = weight_VH.shape, pad
        return weight_VH[token_N], weight_VH.view_as(weight_VH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows_NH: Tensor | None, of_head_VH: Tensor | None) -> tuple[Tensor | None, ...]:
        (token_N,) = ctx.saved_tensors
        if of_rows_NH is not None:
            if of_head_VH is None:
                of_head_VH = of_rows_NH.new_zeros(ctx.like)
            if ctx.pad is not None:
                of_rows_NH = of_rows_NH.masked_fill((token_N == ctx.pad)[:, None], 0.0)
            of_head_VH.index_add_(0, token_N, of_rows_NH)
        return None, of_head_VH, None
