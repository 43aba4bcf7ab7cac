"""Trajectories: what they record, and that stepping the environment with the same tokens yields the same."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.errors import DataError
from rlgkd.lm import LanguageModel
from rlgkd.rollout import rollout, sample_episodes
from rlgkd.types import Source, StopReason

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def policy() -> LanguageModel:
    return LanguageModel(tiny.model(vocabulary=4, scale=0.1), TOKENIZER)


def task(**settings) -> tiny.WordTask:
    settings = {"prompts": ("A", "B C", "C A B"), "max_new_tokens": 4, **settings}
    return tiny.WordTask(TOKENIZER, lambda text: text.count("B") / 4, **settings)


def items(of: tiny.WordTask):
    return [of.item("train", 0, n) for n in range(of.size("train"))]


def test_stepping_the_environment_with_the_same_tokens_yields_the_same():
    words = task()
    env = TextGenerationEnv(words)
    trajectories = rollout(policy(), words, items(words), group=4)
    assert {t.stop for t in trajectories} == {StopReason.END, StopReason.LENGTH}
    for n, t in enumerate(trajectories):
        env.reset(seed=0, options={"index": n // 4})
        *_, last = [env.step(np.int64(token)) for token in t.tokens_T[t.action_mask_T]]
        observation, reward, terminated, _, info = last
        assert terminated
        assert observation[: len(t.tokens_T)].tolist() == t.tokens_T.tolist()
        assert (reward, info["text"], info["stop"]) == (t.score.reward, t.text, str(t.stop))


def test_a_trajectory_marks_its_actions_and_keeps_their_logp():
    words = task()
    for t in rollout(policy(), words, items(words), group=2):
        prompt = len(words.encode_prompt(t.item))
        assert t.action_mask_T.tolist() == [False] * prompt + [True] * t.length
        assert (t.logp_T[:prompt] == 0).all() and (t.logp_T[prompt:] < 0).all()
        assert t.length <= 4 and (t.stop is StopReason.END) == (t.tokens_T[-1] == 0)
        assert t.source is Source.STUDENT


def test_a_rollout_that_is_cut_short_leaves_out_what_has_not_begun():
    words, lm = task(max_new_tokens=8), policy()
    whole = rollout(lm, words, items(words), group=2)
    lm.rows_at_once = 2
    some = sample_episodes(lm, words, items(words), group=2, on_step=lambda _: False)
    assert [(t.item.key, t.sample, t.length) for t in some] == [(t.item.key, t.sample, 1) for t in whole[:2]]


def test_a_sample_belongs_to_seed_key_place_and_number():
    words, lm = task(max_new_tokens=8), policy()
    three = items(words)
    whole = [t.tokens_T.tolist() for t in rollout(lm, words, three, group=3, seed=1)]
    assert [t.tokens_T.tolist() for t in rollout(lm, words, three[1:2], group=3, seed=1)] == whole[3:6]
    assert [t.tokens_T.tolist() for t in rollout(lm, words, three[:1], group=1, seed=1)] == whole[:1]
    for settings in ({"seed": 2}, {"seed": 1, "stream_indices": [5, 6, 7]}):
        other = [t.tokens_T.tolist() for t in sample_episodes(lm, words, three, group=3, **settings)]
        assert sum(a != b for a, b in zip(whole, other, strict=True)) >= 6


def test_an_item_that_comes_twice_is_sampled_anew():
    words, lm = task(max_new_tokens=8), policy()
    item = words.item("train", 0, 0)
    first, second = sample_episodes(lm, words, [item, item], stream_indices=[0, 3])
    assert first.tokens_T.tolist() != second.tokens_T.tolist()


def test_the_reward_is_called_once_for_the_batch():
    calls = []
    words = task()
    score = words.score
    words.score = lambda items, texts, **more: calls.append(len(texts)) or score(items, texts)
    rollout(policy(), words, items(words), group=2)
    assert calls == [6]


def test_references_are_trajectories_from_data_with_their_end_token():
    words = task(references=("B A", "C", "B B B B B"))
    first, second, cut = tiny.references(policy(), words, items(words))
    assert first.tokens_T.tolist() == [1, 2, 1, 0] and first.action_mask_T.tolist() == [False, True, True, True]
    assert first.source is Source.DATA and first.stop is StopReason.END and first.score.reward == 0.25
    assert (first.logp_T == 0).all() and second.length == 2
    # One that is too long is cut where a sampled one would be, and what is left of it is its text.
    assert cut.stop is StopReason.LENGTH and cut.length == 4 and cut.text == "B B B B" and cut.score.reward == 1.0


def test_an_item_without_reference_is_an_error_that_names_it():
    words = task()
    with pytest.raises(DataError, match="'0'"):
        tiny.references(policy(), words, items(words))


def test_a_prompt_that_leaves_no_room_in_the_context_is_an_error():
    words = task(prompts=("A " * 60,), max_new_tokens=5)
    with pytest.raises(DataError, match="64"):
        rollout(policy(), words, items(words))
