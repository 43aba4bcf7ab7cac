"""Where an update's texts come from, and that what is recorded of them is true."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch

from rlgkd.agents import GRPO, Distill
from rlgkd.agents.sources import TeacherTexts
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import DataError, SettingError
from rlgkd.ops import behaviour_policy
from rlgkd.ops.schedule import Schedule
from rlgkd.types import Batch, Source

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
PROMPTS = ("A", "B C", "C A B", "B")


def agent(**settings):
    env = TextVecEnv(
        tiny.WordTask(TOKENIZER, lambda text: float("B" in text), prompts=PROMPTS, references=("B",) * 4), num_envs=2
    )
    student, teacher = (tiny.model(vocabulary=4, seed=seed) for seed in (0, 1))
    settings = {"teacher": teacher, "prompts_per_update": 4, "group_size": 2, "learning_rate": 1e-2, **settings}
    return settings.pop("algorithm", Distill)(student, env, **settings)


def texts(of) -> list[list[int]]:
    return [t.tokens_T.tolist() for t in of.trajectories]


def sampled(of, updates: int = 1) -> list[list[int]]:
    """The texts of the last of some rollouts, without training on them."""
    of.train = lambda: None
    of.learn(1)
    for _ in range(updates - 1):
        of.learn(1, reset_num_timesteps=False)
    return texts(of)


def test_the_coin_can_be_thrown_for_each_prompt():
    some = agent(mixture="prompt", student_fraction=0.5)
    shares = []
    some.train = lambda: shares.append([t.source for t in some.trajectories])
    some.learn(1500)
    assert any(Source.DATA in s and Source.STUDENT in s for s in shares)
    prompts = [sum(source is Source.STUDENT for source in s) / 2 for s in shares]
    assert 0.4 < np.mean(prompts) / 4 < 0.6
    # A prompt weighs the same whoever wrote for it, so that the shares are those of the coin.
    assert all(len(s) == 8 for s in shares)


def test_a_mixed_batch_trains_the_policy_term_on_the_students_texts_alone():
    some = agent(algorithm=GRPO, alpha=0.5, mixture="prompt", student_fraction=0.5, seed=3)
    some.learn(200)
    advantages_BL = some.credit(some.rollout).advantages_BL
    own = [t.source is Source.STUDENT for t in some.trajectories]
    assert len(advantages_BL) == len(own) and 0 < sum(own) < len(own)
    assert not advantages_BL[~np.array(own)].any()


def test_the_share_of_the_students_texts_follows_its_schedule():
    some = agent(student_fraction=Schedule(0.0, 1.0))
    share = []
    some.train = lambda: share.append(some.rollout.student_fraction)
    some.learn(800)
    assert share[0] == 0.0 and share == sorted(share) and share[-1] > 0.9


def test_a_schedule_that_comes_to_data_needs_references_from_the_start():
    settings = {"teacher": tiny.model(vocabulary=4, seed=1), "student_fraction": Schedule(1.0, 0.5)}
    env = TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: 0.0), num_envs=2)
    with pytest.raises(DataError, match="reference"):
        Distill(tiny.model(vocabulary=4), env, **settings)


def test_a_live_teacher_writes_anew_and_its_texts_are_its_own():
    some = agent(student_fraction=0.0, off_policy="teacher")
    first = sampled(some)
    assert {t.source for t in some.trajectories} == {Source.TEACHER} and len(first) == 4
    assert sampled(some) != first
    batch = Batch.collate(some.trajectories, pad=0)
    with torch.no_grad():
        logp_NV = some.teacher.logits(some.teacher.states(batch)).log_softmax(-1)
    expected = logp_NV.gather(1, some.teacher.actions(batch)[:, None])[:, 0]
    torch.testing.assert_close(batch.logp_BT[batch.action_mask_BT], expected, atol=1e-4, rtol=1e-4)


def test_a_teachers_texts_are_drawn_once_and_kept(tmp_path, monkeypatch):
    file = tmp_path / "new" / "texts.jsonl"
    settings = {"student_fraction": 0.0, "off_policy": "teacher", "teacher_texts": file}
    some = agent(**settings)
    first = sampled(some)
    assert sampled(some) == first, "the same items come round"
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + len(PROMPTS) and json.loads(lines[0])["temperature"] == 1.0

    def refuse(*args, **settings):
        raise AssertionError("sampled")

    monkeypatch.setattr("rlgkd.agents.sources.sample_episodes", refuse)
    assert sampled(agent(**settings)) == first
    for other in ({"teacher_temperature": 0.5}, {"teacher": tiny.model(vocabulary=4, seed=2)}):
        with pytest.raises(DataError, match="teacher_texts"):
            agent(**settings, **other)
    file.write_text(file.read_text() + "{no text\n")
    with pytest.raises(DataError, match="teacher_texts"):
        agent(**settings)


@pytest.mark.parametrize("ids", ["[9]", "[-1]", "[]", "[1.0]", "[true]", '"12"', "null", "{}", "[[1]]"])
def test_ids_that_are_no_tokens_of_the_student_are_refused(tmp_path, ids):
    """A file of another vocabulary, or a damaged one, would else end in an index error, or in other texts."""
    file, tokens = tmp_path / "t.jsonl", {"teacher": "x"}
    file.write_text(f'{{"teacher": "x"}}\n{{"key": "a", "ids": [3]}}\n{{"key": "b", "ids": {ids}}}\n')
    with pytest.raises(DataError, match=r"teacher_texts.*no text.*delete it"):
        TeacherTexts(file, tokens, vocabulary=4)
    file.write_text('{"teacher": "x"}\n{"key": "a", "ids": [3]}\n')
    assert TeacherTexts(file, tokens, vocabulary=4).ids == {"a": [3]}


def test_a_line_that_was_cut_off_is_drawn_again(tmp_path):
    texts = TeacherTexts(tmp_path / "t.jsonl", {"teacher": "x"})
    assert texts.ids_for(["a", "b", "a"], lambda rows: [[row] for row in rows]) == [[0], [1], [0]]
    (tmp_path / "t.jsonl").write_text((tmp_path / "t.jsonl").read_text()[:-3])
    again = TeacherTexts(tmp_path / "t.jsonl", {"teacher": "x"})
    assert again.ids_for(["a", "b"], lambda rows: [[9] for _ in rows]) == [[0], [9]]
    assert TeacherTexts(tmp_path / "t.jsonl", {"teacher": "x"}).ids == {"a": [0], "b": [9]}


@pytest.mark.parametrize(
    "settings", [{"behaviour": "teacher_mixed", "teacher_share": 0.4}, {"behaviour": "interleaved", "kept_top_k": 2}]
)
def test_student_and_teacher_sample_together_and_what_is_recorded_is_their_log_probability(settings):
    some = agent(**settings)
    sampled(some)
    assert {t.source for t in some.trajectories} == {Source.MIXED}
    batch = Batch.collate(some.trajectories, pad=0)
    with torch.no_grad():
        logits = [lm.logits(lm.states(batch)) for lm in (some.teacher, some.student)]
    name, *_rest = settings.values()
    mixed_NV = behaviour_policy.get(name, **{k: v for k, v in settings.items() if k != "behaviour"})(*logits)
    expected = mixed_NV.gather(1, some.student.actions(batch)[:, None])[:, 0]
    torch.testing.assert_close(batch.logp_BT[batch.action_mask_BT], expected, atol=1e-4, rtol=1e-4)


def test_a_few_prompts_are_trained_on_again_and_again_with_fresh_samples():
    some = agent(train_prompts=2)
    first = sampled(some)
    second = sampled(some)
    keys = {some.task.item("train", 0, place).key for place in (0, 1)}
    assert {t.item.key for t in some.trajectories} == keys and first != second


def test_a_teacher_without_a_share_leaves_the_students_texts_as_they_are():
    alone = agent()
    assert sampled(agent(behaviour="teacher_mixed", teacher_share=0.0)) == sampled(alone)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"off_policy": "web"}, "off_policy"),
        ({"teacher_texts": "x"}, "teacher_texts"),
        ({"behaviour": "teachermixed"}, "behaviour"),
        ({"kept_top_k": 3}, "kept_top_k"),
        ({"behaviour": "teacher_mixed", "kept_top_k": 3}, "kept_top_k"),
        ({"behaviour": "teacher_mixed", "horizon": 1.0}, "behaviour"),
        ({"mixture": "token"}, "mixture"),
        ({"mixture": "prompt"}, "mixture"),
        ({"off_policy": "teacher"}, "off_policy"),
        ({"behaviour": "interleaved", "student_fraction": 0.0}, "behaviour"),
        ({"behaviour": "teacher_mixed", "estimator": "k2", "policy_loss": "clipped_weight"}, "estimator"),
        ({"algorithm": GRPO, "behaviour": "teacher_mixed"}, "behaviour"),
        (
            {"teacher_decay": 0.9, "off_policy": "teacher", "student_fraction": 0.5, "teacher_texts": "x"},
            "teacher_decay",
        ),
        (
            {"mixture": "prompt", "student_fraction": 0.5, "algorithm": GRPO, "divergence_target": 0.1},
            "divergence_target",
        ),
        ({"drop_even_groups": True}, "drop_even_groups"),
        ({"overlong_buffer": 1}, "overlong_buffer"),
        ({"alpha_rate": 0.2}, "alpha_rate"),
        (
            {
                "algorithm": GRPO,
                "alpha": 0.0,
                "teacher": None,
                "behaviour": "interleaved",
                "policy_loss": "clipped_weight",
            },
            "behaviour",
        ),
    ],
)
def test_settings_that_do_not_work_together_are_refused_by_name(settings, field):
    with pytest.raises(SettingError) as error:
        agent(**settings)
    assert error.value.field == field
