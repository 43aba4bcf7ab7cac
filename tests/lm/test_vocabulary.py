"""A teacher with more tokens than its student: cut to the student's, renormalised, against plain transformers."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from rlgkd.agents import Distill, Reinforce
from rlgkd.envs import TeacherReward
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.errors import ModelError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel, open_by_name, save, shared_vocabulary
from rlgkd.types import Source

WORDS = ("A", "B", "C")
OURS = tiny.word_tokenizer(*WORDS)
THEIRS = tiny.word_tokenizer(*WORDS, "<think>", "</think>")
FEW = {"prompts_per_update": 2, "group_size": 2}


def task() -> tiny.WordTask:
    return tiny.WordTask(OURS, lambda text: float(text.startswith("B")), prompts=("A", "A C"), max_new_tokens=6)


@pytest.fixture
def teacher(tmp_path) -> str:
    """The folder of a teacher that gives its two tokens more, and its padding, much probability."""
    module = tiny.model(vocabulary=len(THEIRS) + 3, seed=1)
    with torch.no_grad():
        module.lm_head.weight[len(OURS) :] += module.lm_head.weight[: len(OURS)].mean(0)
    save(module, THEIRS, tmp_path / "teacher")
    return str(tmp_path / "teacher")


def test_the_divergence_is_that_of_the_renormalised_distribution_of_plain_transformers(teacher, caplog):
    agent = Distill(
        tiny.model(vocabulary=len(OURS)),
        TextVecEnv(task(), num_envs=2),
        teacher=teacher,
        divergence="reverse_kl",
        **FEW,
    ).learn(4)  # one update, whose divergence is logged before its step
    assert "has 2 tokens more than the student's ('<think>', '</think>')" in caplog.text
    plain = AutoModelForCausalLM.from_pretrained(teacher)
    start = tiny.model(vocabulary=len(OURS))
    means = []
    for trajectory in agent.trajectories:
        tokens = torch.as_tensor(trajectory.tokens_T)[None].long()
        with torch.no_grad():
            p_TV = plain(tokens).logits[0].softmax(-1)[:, : len(OURS)]
            q_TV = start(tokens).logits[0].softmax(-1)
        p_TV = p_TV / p_TV.sum(-1, keepdim=True)
        kl_T = (q_TV * (q_TV / p_TV).log()).sum(-1)[:-1]
        means.append(kl_T[torch.as_tensor(trajectory.action_mask_T)[1:]].mean())
    assert agent.last_metrics["train/divergence"] == pytest.approx(float(torch.stack(means).mean()), abs=1e-5)


def test_such_a_teacher_writes_texts_of_the_students_tokens_alone(teacher):
    agent = Distill(
        tiny.model(vocabulary=len(OURS)),
        TextVecEnv(task(), num_envs=2),
        teacher=teacher,
        off_policy="teacher",
        student_fraction=0.0,
        **FEW,
    ).learn(40)
    assert {t.source for t in agent.trajectories} == {Source.TEACHER}
    assert max(int(t.tokens_T.max()) for t in agent.trajectories) < len(OURS)


def test_evaluation_and_the_reward_of_any_library_take_it_too(teacher):
    policy = LanguageModel(tiny.model(vocabulary=len(OURS)), OURS)
    shared = shared_vocabulary(OURS, THEIRS)
    measured = evaluate(policy, open_by_name(teacher, vocabulary=shared), task(), prompts=2)
    assert measured.scores()["reverse_kl"].mean > 0
    env = TextGenerationEnv(
        prompts=["A"], reward=lambda completions: [0.0], tokenizer=OURS, max_prompt_tokens=4, max_new_tokens=2
    )
    wrapped = TeacherReward(env, teacher=teacher, alpha=1.0)
    wrapped.reset(seed=0)
    reward = float(wrapped.step(1)[1])
    with torch.no_grad():
        logits_V = AutoModelForCausalLM.from_pretrained(teacher)(torch.tensor([OURS("A")["input_ids"]])).logits[0, -1]
    assert reward == pytest.approx(float(logits_V[: len(OURS)].log_softmax(-1)[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (tiny.word_tokenizer("A", "X", "B", "C"), "3 differ, first 'B'"),
        (tiny.word_tokenizer("A", "B"), "1 differ, first 'C'"),
    ],
    ids=["inserted", "fewer"],
)
def test_another_vocabulary_is_refused(theirs, message):
    with pytest.raises(ModelError, match=message):
        shared_vocabulary(OURS, theirs)


def test_more_tokens_that_do_not_come_last_are_named():
    ours = tiny.word_tokenizer("A", "B")
    ours.add_tokens(["<x>"])  # id 3; then a hole is filled in theirs
    theirs = tiny.word_tokenizer("A", "B")
    theirs.add_tokens(["<x>", "<y>"])
    assert shared_vocabulary(ours, theirs) == 4
    holed = type("Holed", (), {"get_vocab": lambda self: {"<end>": 0, "A": 1, "B": 3}, "__len__": lambda self: 4})()
    full = type("Full", (), {"get_vocab": lambda self: {"<end>": 0, "A": 1, "y": 2, "B": 3}, "name_or_path": "t"})()
    with pytest.raises(ModelError, match=r"only has more, but not all after them: 'y' has the id 2"):
        shared_vocabulary(holed, full)


def test_a_teacher_none_of_whose_end_tokens_the_student_has_is_refused():
    theirs = tiny.word_tokenizer(*WORDS, "</s>")
    theirs.eos_token = "</s>"
    module = tiny.model(vocabulary=len(theirs))
    module.config.eos_token_id = module.generation_config.eos_token_id = 4
    with pytest.raises(ModelError, match=r"'</s>' does not work; .* none of them ends its texts"):
        LanguageModel(module, theirs, vocabulary=len(OURS))


def test_a_student_keeps_to_the_whole_vocabulary_of_its_environment():
    with pytest.raises(ModelError, match=r"student: .*differs from the environment's"):
        Reinforce(tiny.model(vocabulary=6), TextVecEnv(task(), num_envs=2), tokenizer=THEIRS, alpha=0.0)
