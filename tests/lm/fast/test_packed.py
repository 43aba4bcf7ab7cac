"""Packed tokens: few sizes, and no more padding than that needs."""

from __future__ import annotations

import torch

from rlgkd.lm.fast import PackedTokens


def test_packed_sizes_are_rounded_up_to_few():
    sizes = set()
    for longest in range(64, 128):
        is_token_RT = torch.arange(128) < torch.tensor([[longest], [40]])
        packed = PackedTokens.pack_right_padded(torch.zeros(2, 128, dtype=torch.long), is_token_RT, torch.float32)
        tokens = int(is_token_RT.sum())
        assert tokens <= len(packed.flat_index_N) < 1.04 * tokens
        assert set(is_token_RT.flatten().nonzero()[:, 0].tolist()) <= set(packed.flat_index_N.tolist())
        sizes.add(len(packed.flat_index_N))
    assert len(sizes) <= 24
    whole = PackedTokens.pack_right_padded(torch.zeros(3, 37, dtype=torch.long), torch.ones(3, 37), torch.float32)
    assert len(whole.flat_index_N) == 111  # no padding is made where there is none
