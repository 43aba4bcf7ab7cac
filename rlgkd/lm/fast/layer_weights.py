"""A layer's weights as a decode step uses them: adapters merged, linear layers with one input joined, and prepacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlgkd.lm.fast.decode_ops import DecodeOps
from rlgkd.lm.linear import LinearFunction, prepacked_linear
from rlgkd.lm.lora import merged_weight


@dataclass(frozen=True)
class LayerWeights:
    """The functions that a layer of the Llama family is made of."""

    attention_norm: Callable[[Tensor], Tensor]
    qkv: LinearFunction
    """Queries and keys in the layout of `DecodeOps.apply_rotary`."""
    query_key_norm: Callable[[Tensor], Tensor] | None
    """Qwen3's: over each head of queries and keys."""
    scale: float
    out: LinearFunction
    mlp_norm: Callable[[Tensor], Tensor]
    gate_up: LinearFunction
    down: LinearFunction

    @staticmethod
    def from_layer(layer: Any, ops: DecodeOps, rows: int | None) -> LayerWeights:
        """Convert a decoder layer of transformers; `rows` is that of `prepacked_linear`."""
        attention = layer.self_attn
        mlp = layer.mlp
        rotated = (attention.q_proj, attention.k_proj)
        weights = [ops.to_rotary_layout(merged_weight(part), 0) for part in rotated]
        biases = [None if part.bias is None else ops.to_rotary_layout(part.bias, 0) for part in rotated]

        def joined(*linears: nn.Linear) -> LinearFunction:
            return prepacked_linear([merged_weight(part) for part in linears], [part.bias for part in linears], rows)

        return LayerWeights(
            attention_norm=ops.norm(layer.input_layernorm.weight),
            qkv=prepacked_linear([*weights, merged_weight(attention.v_proj)], [*biases, attention.v_proj.bias], rows),
            query_key_norm=_query_key_norm(attention, weights, ops),
            scale=attention.scaling,
            out=joined(attention.o_proj),
            mlp_norm=ops.norm(layer.post_attention_layernorm.weight),
            gate_up=joined(mlp.gate_proj, mlp.up_proj),
            down=joined(mlp.down_proj),
        )


def _query_key_norm(attention: Any, weights: list[Tensor], ops: DecodeOps) -> Callable[[Tensor], Tensor] | None:
    """One norm over queries and keys, whose weight [K, D] is each kind's own; None for families without."""
    if not hasattr(attention, "q_norm"):
        return None
    norms = zip((attention.q_norm, attention.k_norm), weights, strict=True)
    weight_KD = torch.cat([norm.weight.expand(len(weight) // attention.head_dim, -1) for norm, weight in norms])
    return ops.norm(ops.to_rotary_layout(weight_KD, -1))
