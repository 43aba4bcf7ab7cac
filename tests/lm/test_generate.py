"""Sampling against scoring, against itself in other batches, and against transformers' `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from rlgkd.lm import Completion, LanguageModel, decode
from rlgkd.ops.logit_filters import Filters
from rlgkd.ops.sampling import uniforms
from rlgkd.types import Batch, Item, Score, Source, StopReason, Trajectory

WORDS = tuple("ABCDEFGHIJK")
TOKENIZER = tiny.word_tokenizer(*WORDS)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [3], [2, 2, 9], [11, 10], [5, 6, 7, 8], [1]]
NEW = 12


def policy(kind: str = "llama", temperature: float = 1.0, vocabulary: int = 12, scale: float = 0.1, **settings):
    module = tiny.model(kind, vocabulary=vocabulary, scale=scale, **settings)
    return LanguageModel(module, TOKENIZER, temperature=temperature)


def streams(prompts, group: int = 1, n: int = NEW) -> np.ndarray:
    return np.stack([uniforms(0, str(prompt), g, n) for prompt in prompts for g in range(group)])


def sampled(lm: LanguageModel, prompts=PROMPTS, group: int = 1, **settings) -> list[Completion]:
    return decode(lm, prompts, uniforms_BT=streams(prompts, group), group=group, max_new_tokens=NEW, **settings)


def trajectory(prompt, completion: Completion) -> Trajectory:
    length = len(prompt) + len(completion.ids)
    return Trajectory(
        item=Item(key="", prompt=""),
        tokens_T=np.array([*prompt, *completion.ids]),
        action_mask_T=np.arange(length) >= len(prompt),
        logp_T=np.array([0.0] * len(prompt) + completion.logp, dtype=np.float32),
        entropy_T=np.array([0.0] * len(prompt) + completion.entropy, dtype=np.float32),
        stop=StopReason.END,
        source=Source.STUDENT,
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_logp_and_entropy_of_sampling_equal_those_of_scoring(kind, temperature):
    lm = policy(kind, temperature)
    rows = [trajectory(p, c) for p, c in zip(PROMPTS, sampled(lm), strict=True)]
    batch = Batch.collate(rows, pad=lm.pad)
    with torch.no_grad():
        logp_NV = lm.logits(lm.states(batch)).log_softmax(-1)
    scored = logp_NV.gather(1, lm.actions(batch)[:, None])[:, 0]
    torch.testing.assert_close(scored, batch.logp_BT[batch.action_mask_BT], atol=1e-5, rtol=0)
    entropy_N = np.concatenate([row.entropy_T[row.action_mask_T] for row in rows])
    np.testing.assert_allclose(entropy_N, torch.special.entr(logp_NV.exp()).sum(-1).numpy(), atol=1e-5)
    assert batch.attention_mask_BT.min() == 0, "no row was padded, so the test saw no padding"


def test_the_logp_includes_the_temperature():
    hot = sampled(policy(temperature=1.6))[0]
    lm = policy(temperature=1.0)
    batch = Batch.collate([trajectory(PROMPTS[0], hot)], pad=lm.pad)
    with torch.no_grad():
        cold_NV = lm.logits(lm.states(batch))
    expected = (cold_NV / 1.6).log_softmax(-1).gather(1, lm.actions(batch)[:, None])[:, 0]
    np.testing.assert_allclose(hot.logp, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_sample_does_not_depend_on_what_else_is_in_the_batch(kind):
    lm = policy(kind)
    together = sampled(lm)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        (alone,) = sampled(lm, [prompt])
        assert alone.ids == completion.ids
        np.testing.assert_allclose(alone.logp, completion.logp, atol=1e-5)
    assert len({len(c.ids) for c in together}) > 1, "all ended at once, so no row was dropped"


def test_a_group_that_shares_its_prefill_samples_what_separate_rows_do():
    lm = policy()
    together = sampled(lm, group=3)
    for row, completion in enumerate(together):
        prompt, g = PROMPTS[row // 3], row % 3
        (alone,) = decode(lm, [prompt], uniforms_BT=streams([prompt], 3)[g : g + 1], max_new_tokens=NEW)
        assert alone.ids == completion.ids
    assert together[0].ids != together[1].ids


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_greedy_decoding_equals_that_of_transformers(kind):
    for seed in range(3):
        lm = policy(kind, seed=seed)
        for prompt, completion in zip(PROMPTS, decode(lm, PROMPTS, uniforms_BT=None, max_new_tokens=NEW), strict=True):
            theirs = lm.module.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
            assert completion.ids == theirs[0, len(prompt) :].tolist()


def test_greedy_decoding_stops_at_the_end_token():
    lm = policy()
    tiny.set_distribution(lm, [3], [0.97, *[0.03 / 11] * 11])
    (completion,) = decode(lm, [[3]], uniforms_BT=None, max_new_tokens=NEW)
    assert completion.ids == [lm.end]
    assert completion.logp[0] == pytest.approx(np.log(0.97), abs=1e-5)
    assert completion.entropy[0] == pytest.approx(-0.97 * np.log(0.97) - 0.03 * np.log(0.03 / 11), abs=1e-5)


def test_finished_rows_leave_the_batch():
    made = []
    lm = policy()
    completions = sampled(lm, group=4, on_step=lambda tokens: made.append(tokens) or True)
    lengths = [len(c.ids) for c in completions]
    assert made == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert made[0] == 24 > made[-1] > 0


def test_a_callback_that_returns_false_stops_the_decoding():
    completions = sampled(policy(), on_step=lambda tokens: False)
    assert [len(c.ids) for c in completions] == [1] * len(PROMPTS)


def test_tokens_of_a_padded_vocabulary_are_never_sampled():
    lm = policy(vocabulary=40)
    with torch.no_grad():
        lm.head.weight[12:] *= 100  # they would be all that is sampled
    completions = sampled(lm, group=8)
    assert {token for c in completions for token in c.ids} <= set(range(12))
    state_H = lm.body(input_ids=torch.tensor([PROMPTS[1]])).last_hidden_state[0, -1]
    assert lm.logits(state_H).shape == (12,)


def test_sampling_follows_the_distribution():
    lm = policy()
    wanted = [0.1, 0.4, 0.3, 0.2, *[1e-6] * 8]
    tiny.set_distribution(lm, [3], wanted)
    first = [c.ids[0] for c in decode(lm, [[3]], uniforms_BT=streams([[3]], 4000, 1), group=4000, max_new_tokens=1)]
    np.testing.assert_allclose(np.bincount(first, minlength=12) / 4000, wanted, atol=0.03)


def test_filtered_samples_and_their_logp_follow_the_filtered_distribution():
    lm = policy()
    tiny.set_distribution(lm, [3], [0.1, 0.4, 0.3, 0.15, 0.05, *[1e-6] * 7])
    two, three = [0, 4, 3, 0, 0], [0, 8, 6, 3, 0]
    for filters, left in ((Filters(top_k=2), two), (Filters(top_p=0.8), three), (Filters(min_p=0.3), three)):
        completions = decode(
            lm, [[3]], uniforms_BT=streams([[3]], 2000, 1), group=2000, max_new_tokens=1, filters=filters
        )
        expected = np.array(left) / sum(left)
        np.testing.assert_allclose(
            np.bincount([c.ids[0] for c in completions], minlength=5) / 2000, expected, atol=0.04
        )
        for completion in completions:
            assert completion.logp[0] == pytest.approx(np.log(expected[completion.ids[0]]), abs=1e-4)


def test_top_k_of_1_is_greedy_decoding_with_probability_1():
    lm = policy()
    certain = sampled(lm, filters=Filters(top_k=1))
    assert [c.ids for c in certain] == [c.ids for c in decode(lm, PROMPTS, uniforms_BT=None, max_new_tokens=NEW)]
    assert {value for c in certain for value in c.logp} == {0.0}


def test_a_completion_ends_where_should_stop_is_true():
    lm, lengths = policy(), []
    plain = sampled(lm, group=4)

    def third(ids):
        lengths.append(len(ids))
        return len(ids) == 3

    stopped = sampled(lm, group=4, should_stop=third)
    assert [c.ids for c in stopped] == [c.ids[:3] for c in plain]
    assert max(lengths) == 3 and any(len(c.ids) > 3 for c in plain)
