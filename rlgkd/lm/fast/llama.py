"""The forward pass of the Llama family over packed tokens, written out by hand.

A model's own forward pass also multiplies padding, makes a dozen small passes over what a fused norm or rotation does
in two, and keeps each of their results for the gradient. Here matrix products, norms and rotations see the N tokens of
a batch as one flat sequence, and only attention sees them as rows. The last layer continues with the tokens alone whose
states are asked for. What the backward pass needs is kept once (the input of a norm, not its output) and the rest is
computed again from it.

States and gradients equal those of the model's own pass up to rounding (tests/lm/fast/test_llama.py).

Dimensions: N packed tokens, M tokens whose states are wanted, G key heads, D numbers of a head, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from rlgkd.lm._autograd import apply_function
from rlgkd.lm.fast.attention import AttentionPlan, packed_attention, plan_attention
from rlgkd.lm.fast.autograd_ops import apply_rotary, linear, rms_norm, rms_norm_linears, signed_sin, swiglu_down
from rlgkd.lm.fast.packed import PackedTokens
from rlgkd.lm.linear import few_sizes
from rlgkd.ops._gradient import wants_gradient

BROADCAST_MIN_HEAD_DIM = 64
"""Numbers of a head from which on cosine and sine are broadcast over the heads. Below it they are repeated for each:
the overhead of torch's inner loop then costs more than the copy."""

OnLayer = Callable[[Tensor, Tensor], None]
"""Called with each layer's rotated keys and its values, both [N, G, D]."""


def forward(
    body: Any,
    packed: PackedTokens,
    wanted_M: Tensor,
    *,
    head_VH: Tensor | None = None,
    on_layer: OnLayer | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the model and return the wanted tokens' states [M, H], and the head's weight, as the loss should use it.

    Where the head's weight is the embedding too, the gradient of both is then formed in one tensor of that size.

    Args:
        body: A model without its head that is `supported` for "forward".
        packed: Its input.
        wanted_M: Indices among the N tokens; the same may come several times.
        head_VH: The head's weight, if the loss depends on the states through it.
        on_layer: Receives keys and values, for a KV cache.
    """
    first_M, inverse_M = wanted_M.unique(return_inverse=True)  # sorted, as the plan of attention needs them
    wanted_M = _with_others(first_M, packed)
    inverse_M = torch.searchsorted(wanted_M, first_M)[inverse_M]
    embed = body.embed_tokens
    if embed.weight is head_VH and wants_gradient(head_VH):
        state_NH, head_VH = cast(
            "tuple[Tensor, Tensor]", apply_function(_TiedEmbedding, packed.token_N, head_VH, embed.padding_idx)
        )
    else:
        state_NH = embedding(packed.token_N, embed.weight, embed.padding_idx)
    rotary = _rotary_tables(body, state_NH, packed.position_N)
    sqrt_eps = state_NH.new_tensor(body.config.rms_norm_eps**0.5)
    key_heads = body.config.num_key_value_heads
    group = body.config.num_attention_heads // key_heads
    flat_indices = (packed.flat_index_N, packed.flat_index_N[wanted_M])
    plan_all, plan_wanted = plan_attention(packed, flat_indices, key_heads, group)
    for index, layer in enumerate(body.layers):
        last = index == len(body.layers) - 1
        plan = plan_wanted if last else plan_all
        inputs = (layer, sqrt_eps, packed, rotary, plan, wanted_M if last else None, on_layer)
        if layer.gradient_checkpointing and torch.is_grad_enabled():
            # No random state is kept, for nothing in a layer is random: dropout is off (rlgkd.lm.model).
            state_NH = cast(Any, checkpoint)(
                _layer_forward, state_NH, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            state_NH = _layer_forward(state_NH, *inputs)
    if not len(body.layers):
        state_NH = state_NH[wanted_M]
    return rms_norm(state_NH, body.norm.weight, sqrt_eps).index_select(0, inverse_M), head_VH


def _with_others(wanted_M: Tensor, packed: PackedTokens) -> Tensor:
    """Indices of tokens, rising, and those of others, so that there are few different numbers of them.

    The others are of the last columns, for attention computes the columns from the first that is wanted.
    """
    extra = min(few_sizes(len(wanted_M)), len(packed.token_N)) - len(wanted_M)
    if extra == 0:
        return wanted_M
    column_N = packed.flat_index_N % packed.width
    column_N[wanted_M] = -1
    return torch.cat([wanted_M, column_N.topk(extra).indices]).sort().values


def _rotary_tables(body: Any, state_NH: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of each token, [N, 1, D], or [N, K, D] for small heads."""
    cos_1ND, sin_1ND = body.rotary_emb(state_NH, position_N[None])
    copies = 1 if cos_1ND.shape[2] >= BROADCAST_MIN_HEAD_DIM else body.config.num_attention_heads
    cos_NKD, sin_NKD = (
        table_ND[:, None].expand(-1, copies, -1).contiguous() for table_ND in (cos_1ND[0], signed_sin(sin_1ND[0]))
    )
    return cos_NKD, sin_NKD


def _layer_forward(
    state_NH: Tensor,
    layer: Any,
    sqrt_eps: Tensor,
    packed: PackedTokens,
    rotary: tuple[Tensor, Tensor],
    plan: AttentionPlan,
    wanted_M: Tensor | None,
    on_layer: OnLayer | None,
) -> Tensor:
    """[N, H], or [M, H] where tokens are wanted: keys and values come from all tokens, the rest from those alone."""
    attention = layer.self_attn
    mlp = layer.mlp
    norm = layer.input_layernorm.weight
    cos, sin = rotary
    if wanted_M is None:
        query, key, value = rms_norm_linears(
            state_NH, norm, sqrt_eps, attention.q_proj, attention.k_proj, attention.v_proj
        )
        query_cos = cos
        query_sin = sin
    else:
        key, value = rms_norm_linears(state_NH, norm, sqrt_eps, attention.k_proj, attention.v_proj)
        state_NH = state_NH.index_select(0, wanted_M)
        (query,) = rms_norm_linears(state_NH, norm, sqrt_eps, attention.q_proj)
        query_cos = cos[wanted_M]
        query_sin = sin[wanted_M]
    query, key, value = (x.unflatten(-1, (-1, attention.head_dim)) for x in (query, key, value))
    if hasattr(attention, "q_norm"):  # Qwen3
        query = rms_norm(query, attention.q_norm.weight, sqrt_eps)
        key = rms_norm(key, attention.k_norm.weight, sqrt_eps)
    query = apply_rotary(query, query_cos, query_sin)
    key_heads = key.shape[1]
    key = apply_rotary(key, cos[:, :key_heads], sin[:, :key_heads])
    if on_layer is not None:
        on_layer(key, value)
    output = packed_attention(query, key, value, packed, plan, attention.scaling)
    # Added in place: the backward pass of a linear layer does not need its output.
    state_NH = linear(output.flatten(1), attention.o_proj).add_(state_NH)
    norm = layer.post_attention_layernorm.weight
    gate, up = rms_norm_linears(state_NH, norm, sqrt_eps, mlp.gate_proj, mlp.up_proj)
    return swiglu_down(gate, up, mlp.down_proj).add_(state_NH)


class _TiedEmbedding(torch.autograd.Function):
    """A weight that is both embedding and head: returns the tokens' rows, and the weight itself.

    Autograd would form a second gradient of the weight's size for the embedding. As in torch's embedding, the padding
    token, if there is one, has no gradient there.
    """

    @staticmethod
    def forward(ctx: Any, token_N: Tensor, weight_VH: Tensor, padding_index: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(token_N)
        ctx.set_materialize_grads(False)  # None for an unused output, and not zeros of the weight's size
        ctx.shape = weight_VH.shape
        ctx.padding_index = padding_index
        return weight_VH[token_N], weight_VH.view_as(weight_VH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows_grad_NH: Tensor | None, head_grad_VH: Tensor | None) -> tuple[Tensor | None, ...]:
        (token_N,) = ctx.saved_tensors
        if rows_grad_NH is not None:
            if head_grad_VH is None:
                head_grad_VH = rows_grad_NH.new_zeros(ctx.shape)
            if ctx.padding_index is not None:
                rows_grad_NH = rows_grad_NH.masked_fill((token_N == ctx.padding_index)[:, None], 0.0)
            head_grad_VH.index_add_(0, token_N, rows_grad_NH)
        return None, head_grad_VH, None
