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
        assert tokens <= len(packed.flat_index_N) <= 17 / 16 * tokens
        assert set(is_token_RT.flatten().nonzero()[:, 0].tolist()) <= set(packed.flat_index_N.tolist())
        sizes.add(len(packed.flat_index_N))
    assert len(sizes) <= 12


def test_rows_without_padding_get_rows_of_it():
    whole = PackedTokens.pack_right_padded(torch.zeros(3, 37, dtype=torch.long), torch.ones(3, 37), torch.float32)
    assert (len(whole.flat_index_N), whole.rows, whole.width) == (112, 4, 37)
    assert whole.flat_index_N.tolist() == [*range(112)]
    visible_RTT = torch.ones(2, 7, 7, dtype=torch.bool).tril()
    tokens_RT = torch.ones(2, 7, dtype=torch.long)
    packed = PackedTokens.pack(tokens_RT, tokens_RT, torch.ones(2, 7, dtype=torch.bool), visible_RTT, torch.float32)
    assert (len(packed.flat_index_N), packed.rows) == (14, 2)  # few tokens are of any number
    wide_RTT, tokens_RT = visible_RTT.repeat(20, 1, 1), tokens_RT.repeat(20, 1)
    packed = PackedTokens.pack(tokens_RT, tokens_RT, tokens_RT.bool(), wide_RTT, torch.float32)
    assert (len(packed.flat_index_N), packed.rows, len(packed.mask_RTT)) == (288, 42, 42)
    assert torch.equal(packed.mask_RTT[-1], packed.mask_RTT[0])
