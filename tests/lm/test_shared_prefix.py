"""Shared prefixes against separate rows: the same states and gradients, for fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.lm.shared_prefix import FAMILIES, last_token_layouts, pack_shared_prefixes
from rlgkd.types import Batch, Item, RowLayout, Score, Source, StopReason, Trajectory

WORDS = [f"w{n}" for n in range(30)]
TOKENIZER = tiny.word_tokenizer(*WORDS)


def trajectory(prompt: list[int], completion: list[int], gap: int = 0) -> Trajectory:
    """A trajectory in which `gap` tokens in the middle of the completion are no actions."""
    tokens = [*prompt, *completion]
    action = np.arange(len(tokens)) >= len(prompt)
    middle = len(prompt) + len(completion) // 2
    action[middle : min(middle + gap, len(tokens) - 1)] = False
    return Trajectory(
        item=Item(key="0", prompt=""),
        tokens_T=np.array(tokens, dtype=np.int64),
        action_mask_T=action,
        logp_T=np.zeros(len(tokens), dtype=np.float32),
        entropy_T=np.zeros(len(tokens)),
        stop=StopReason.END,
        source=Source.STUDENT,
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


def random_batch(seed: int, groups: int = 3, size: int = 4, gap: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(groups):
        prompt = rng.integers(1, 31, rng.integers(1, 16)).tolist()
        rows += [trajectory(prompt, rng.integers(0, 31, rng.integers(2, 9)).tolist(), gap) for _ in range(size)]
    return Batch.collate([rows[n] for n in rng.permutation(len(rows))], pad=0)


def without_layouts(batch: Batch) -> Batch:
    """The same rows, not known to share anything."""
    return Batch(
        tokens_BT=batch.tokens_BT,
        attention_mask_BT=batch.attention_mask_BT,
        action_mask_BT=batch.action_mask_BT,
        logp_BT=batch.logp_BT,
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_states_and_gradients_equal_those_of_separate_rows(kind):
    lm = tiny.family(kind, TOKENIZER)
    assert lm.shares_prompts
    for seed, gap in ((0, 0), (1, 2)):
        batch = random_batch(seed, gap=gap)
        assert pack_shared_prefixes(batch.layouts_B, batch.tokens_BT.shape[1], hidden=16, device=lm.device) is not None
        results = []
        for form in (batch, without_layouts(batch)):
            lm.module.zero_grad()
            states_NH = lm.states(form)
            lm.logits(states_NH).log_softmax(-1).gather(1, lm.actions(form)[:, None]).sum().backward()
            results.append((states_NH.detach(), [p.grad.clone() for p in lm.module.parameters() if p.grad is not None]))
        assert torch.allclose(results[0][0], results[1][0], atol=1e-4)
        for shared, own in zip(results[0][1], results[1][1], strict=True):
            assert torch.allclose(shared, own, atol=2e-4 * max(1.0, own.abs().max().item()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_every_action_has_the_context_and_positions_of_its_own_row(seed, groups, size, gap):
    batch = random_batch(seed, groups, size, gap)
    shared = pack_shared_prefixes(batch.layouts_B, batch.tokens_BT.shape[1], hidden=16, device=torch.device("cpu"))
    if shared is None:
        return
    width = batch.tokens_BT.shape[1]
    action_BT = batch.action_mask_BT
    rows, columns = action_BT.nonzero(as_tuple=True)
    source_index, position = shared.source_index_RT.flatten(), shared.position_RT.flatten()
    longest = shared.source_index_RT.shape[1]
    for before, row, column in zip(shared.predictor_N.tolist(), rows.tolist(), columns.tolist(), strict=True):
        assert position[before] == column - 1
        seen = shared.visible_R1TT[before // longest, 0, before % longest].nonzero()[:, 0] + before // longest * longest
        tokens = batch.tokens_BT.flatten()[source_index[seen]].tolist()
        assert tokens == batch.tokens_BT[row, :column].tolist()
        assert position[seen].tolist() == list(range(column))
    assert width >= longest or size > 1


def test_single_samples_and_long_completions_are_not_packed():
    def layout(row: int, same: int, prompt: int, length: int) -> RowLayout:
        return RowLayout(same, prompt, length, np.arange(prompt, length))

    cpu = torch.device("cpu")
    assert pack_shared_prefixes([layout(0, 0, 5, 9), layout(1, 1, 5, 9)], 9, hidden=16, device=cpu) is None
    assert pack_shared_prefixes([layout(0, 0, 4, 400), layout(1, 0, 4, 400)], 400, hidden=16, device=cpu) is None
    uneven = [layout(0, 0, 10, 20), *(layout(n, 1, 10, 20) for n in range(1, 65))]
    many = [layout(n, n, 10, 20) for n in range(65, 129)]
    assert pack_shared_prefixes([*uneven, *many], 20, hidden=16, device=cpu) is None, "more padding than it saves"
    shared = pack_shared_prefixes([layout(n, 0, 100, 110) for n in range(4)], 110, hidden=16, device=cpu)
    assert shared is not None and shared.source_index_RT.shape == (1, 140)


def test_the_last_states_of_rows_that_begin_alike_share_their_prefix():
    rng = np.random.default_rng(0)
    heads = [rng.integers(1, 31, 20).tolist() for _ in range(3)]
    rows = [heads[n % 3] + rng.integers(1, 31, n % 4 + 1).tolist() for n in range(12)] + [[5, 6], heads[0]]
    layouts = last_token_layouts(rows)
    assert {layouts[n].same_prompt for n in range(0, 12, 3)} == {layouts[13].same_prompt}
    assert len({layout.same_prompt for layout in layouts}) == 4
    for row, layout in zip(rows, layouts, strict=True):
        assert rows[layout.same_prompt][: layout.prompt] == row[: layout.prompt] and layout.prompt < len(row)
    lm = tiny.family("llama", TOKENIZER)
    tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for n, row in enumerate(rows):
        tokens_BT[n, : len(row)] = torch.tensor(row)
    shared = pack_shared_prefixes(layouts, tokens_BT.shape[1], hidden=16, device=torch.device("cpu"))
    assert shared is not None and len(shared.source_index_RT) < len(rows)
    plain = torch.stack([lm.body(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows])
    assert torch.allclose(shared.states(lm.body, tokens_BT), plain, atol=1e-4)


def test_a_window_or_an_unknown_family_shares_nothing():
    lm = tiny.family("mistral", TOKENIZER)
    lm.module.config.sliding_window = 8
    assert not lm.shares_prompts
    lm = tiny.family("llama", TOKENIZER)
    lm.module.config.model_type = "other"
    assert not lm.shares_prompts
