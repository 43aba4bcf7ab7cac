"""Attention over packed tokens, beyond what the forward pass shows (test_llama)."""

from __future__ import annotations

import torch

from rlgkd.lm.fast import PackedTokens, attention


def test_attention_takes_any_strides_and_infinities_stay_in_their_row():
    is_token_RT = torch.arange(6) < torch.tensor([[6], [4]])
    packed = PackedTokens.pack_right_padded(torch.zeros(2, 6, dtype=torch.long), is_token_RT, torch.float32)
    (plan,) = attention.plan_attention(packed, [packed.flat_index_N], 2, 2)
    query, key, value = (torch.randn(heads, 10, 8).transpose(0, 1) for heads in (4, 2, 2))
    plain = attention.packed_attention(*(x.contiguous() for x in (query, key, value)), packed, plan, 0.3)
    torch.testing.assert_close(attention.packed_attention(query, key, value, packed, plan, 0.3), plain)
    value[0] = torch.inf
    bad = attention.packed_attention(query, key, value, packed, plan, 0.3)
    torch.testing.assert_close(bad[6:], plain[6:])
    assert not bad[:6].isfinite().all()
