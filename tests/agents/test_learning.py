"""Tiny tasks solved in seconds, closed forms reached through the public agents, the same curve for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tiny
import torch
from on_request import minutes
from stable_baselines3.common.logger import Logger, configure

from rlgkd.agents import GRPO, RLOO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.lm import LanguageModel
from rlgkd.ops import divergence
from rlgkd.ops.schedule import Schedule
from rlgkd.types import Source

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def environment(reward=lambda text: float(text.startswith("B")), **settings) -> TextVecEnv:
    return TextVecEnv(tiny.WordTask(TOKENIZER, reward, **settings), num_envs=2)


def student(seed: int = 0):
    return tiny.model(vocabulary=4, seed=seed)


def curve(agent, timesteps: int, name: str) -> list[float]:
    """What is logged under a name while the agent learns."""
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(timesteps)
    return [row[name] for row in rows.rows]


def distribution(agent, prompt=(1,)) -> torch.Tensor:
    """The probabilities of the first token."""
    lm = agent.student
    with torch.no_grad():
        return lm.logits(lm.body(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]).softmax(-1)


def test_reinforce_learns_which_word_to_write_first():
    agent = Reinforce(student(), environment(), alpha=0.0, learning_rate=2e-2, prompts_per_update=4)
    assert distribution(agent)[2] < 0.5
    agent.learn(1500)
    assert distribution(agent)[2] > 0.9
    assert np.mean([t.score.reward for t in agent.trajectories]) > 0.9


def test_grpo_learns_it_with_two_updates_on_each_rollout():
    agent = GRPO(student(), environment(), alpha=0.0, learning_rate=2e-2, prompts_per_update=4, epochs=2)
    agent.learn(1500)
    assert distribution(agent)[2] > 0.9


def weights_after(agent_class, **settings) -> list[torch.Tensor]:
    agent = agent_class(student(), environment(), teacher=student(1), alpha=0.3, learning_rate=1e-2, **settings)
    agent.learn(200)
    return list(agent.student.module.parameters())


def same(some, others) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_rloo_is_reinforce_with_the_leave_one_out_baseline():
    assert same(weights_after(RLOO), weights_after(Reinforce, advantage="leave_one_out"))
    assert not same(weights_after(RLOO), weights_after(Reinforce, advantage="raw"))
    with pytest.raises(SettingError, match="RLOO fixes it"):
        RLOO(student(), environment(), alpha=0.0, advantage="raw")


def test_a_clipped_ratio_matters_only_where_a_rollout_is_used_again():
    once, twice = ({"epochs": n, "clip_low": 1e-3, "clip_high": 1e-3} for n in (1, 2))
    torch.testing.assert_close(weights_after(GRPO, **once), weights_after(GRPO, policy_loss="reinforce", epochs=1))
    assert not same(weights_after(GRPO, **twice), weights_after(GRPO, epochs=2, clip_low=1.0, clip_high=1e9))
    with pytest.raises(SettingError, match="epochs: 2"):
        weights_after(GRPO, policy_loss="reinforce", epochs=2)


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "token_mean", "constant"])
def test_every_reduction_of_the_policy_term_trains(reduction):
    agent = GRPO(
        student(), environment(), alpha=0.0, learning_rate=2e-2, prompts_per_update=4, policy_reduction=reduction
    )
    agent.learn(1500)
    assert distribution(agent)[2] > 0.7


def test_one_sample_of_a_prompt_is_enough_without_a_groups_baseline():
    agent = Reinforce(student(), environment(), alpha=0.0, group_size=1, advantage="batch_normalised")
    agent.learn(50)
    with pytest.raises(SettingError, match="group_size: 1"):
        Reinforce(student(), environment(), alpha=0.0, group_size=1)


def test_alpha_follows_its_schedule_and_every_value_is_logged():
    agent = Reinforce(student(), environment(), teacher=student(1), alpha=Schedule(1.0, 0.0))
    alphas = curve(agent, 4000, "train/alpha")
    assert alphas == sorted(alphas, reverse=True) and alphas[0] > 0.8 and alphas[-1] < 0.2
    with pytest.raises(SettingError, match="alpha"):
        Reinforce(student(), environment(), teacher=student(1), alpha=Schedule(1.5, 0.0))


TEACHER_P = (0.5, 0.3, 0.15, 0.05)
REWARD = (0.0, 1.0, 0.0, 1.0)


def optimum(alpha: float, divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Of (1-alpha) E[r] - alpha D over the distributions on four tokens, by brute force from the teacher's on."""
    teacher_V, reward_V = torch.tensor(TEACHER_P).double().log(), torch.tensor(REWARD).double()
    logits_V = teacher_V.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits_V], max_iter=1000, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = alpha * divergence(teacher_V, logits_V) - (1 - alpha) * logits_V.softmax(-1) @ reward_V
        value.backward()
        return value

    solver.step(loss)
    return logits_V.detach().softmax(-1).float()


OPTIMA = [  # the closed forms of docs/mathematics.md, "The optimum"; for the other two the solver's own
    ({"divergence": "reverse_kl"}, (0.11739, 0.726336, 0.035217, 0.121056)),
    ({"divergence": "forward_kl"}, (0.179233, 0.657426, 0.05377, 0.109571)),
    ({"divergence": "jsd", "beta": 0.5}, (0.003503, 0.853239, 0.001051, 0.142207)),
    ({"divergence": "jsd", "beta": 0.1}, None),
    ({"divergence": "jsd", "beta": 0.9}, None),
]


@pytest.mark.parametrize(("settings", "closed_form"), OPTIMA, ids=[str(settings) for settings, _ in OPTIMA])
def test_the_mixture_arrives_at_the_optimum_of_equation_5(settings, closed_form):
    expected = optimum(
        0.3, divergence.get(settings["divergence"], **{k: v for k, v in settings.items() if k == "beta"})
    )
    if closed_form is not None:
        torch.testing.assert_close(expected, torch.tensor(closed_form), atol=2e-6, rtol=0)
    teacher = student(1)
    tiny.set_distribution(LanguageModel(teacher, TOKENIZER), [1], TEACHER_P)
    reward = dict(zip(("", "A", "B", "C"), REWARD, strict=True)).__getitem__
    agent = Reinforce(
        student(),
        environment(reward, max_new_tokens=1),
        teacher=teacher,
        alpha=0.3,
        **settings,
        group_size=256,
        prompts_per_update=1,
        learning_rate=lambda remaining: 1e-2 * remaining,
    )
    agent.learn(100 * 256)
    torch.testing.assert_close(distribution(agent), expected, atol=0.02, rtol=0)


def fork_model(behind_prompt: Sequence[float], behind_a: Sequence[float], behind_b: Sequence[float] | None):
    """Llama without layers, so that a token's probabilities depend on the one before alone: the prompt C, A or B.

    None for what comes behind B: the state there is zero, so the distribution is even whatever the head learns.
    """
    module = tiny.model(vocabulary=4, layers=0)
    rows = {3: behind_prompt, 1: behind_a, 2: behind_b}
    module.requires_grad_(False)
    lm = LanguageModel(module, TOKENIZER)
    lm.head.weight.requires_grad_()
    with torch.no_grad():
        module.get_input_embeddings().weight.zero_()
        lm.head.weight.zero_()
        for token, probabilities in rows.items():
            if probabilities is not None:
                module.get_input_embeddings().weight[token, token] = 1.0
                state_H = lm.body(input_ids=torch.tensor([[token]])).last_hidden_state[0, -1]
                lm.head.weight += torch.outer(torch.tensor(probabilities).log(), state_H) / state_H.dot(state_H)
    return module


SAMPLED = {"estimator": "sampled", "group_size": 1024}


@pytest.mark.parametrize(
    ("algorithm", "settings", "avoided"),
    [
        (Distill, {"horizon": 0.0}, False),
        (Distill, {"horizon": 1.0}, True),
        pytest.param(Distill, {"horizon": 1.0, **SAMPLED}, True, marks=minutes),
        pytest.param(Reinforce, {"alpha": 1.0, "combination": "in_reward", **SAMPLED}, True, marks=minutes),
    ],
)
def test_a_mismatch_that_cannot_be_mended_is_avoided_where_tokens_answer_for_what_comes(algorithm, settings, avoided):
    even, behind_a, behind_b = [0.25] * 4, [0.1, 0.2, 0.3, 0.4], [0.7, 0.2, 0.05, 0.05]
    teacher = fork_model([1e-4, 0.4999, 0.4999, 1e-4], behind_a, behind_b)
    mismatch = (torch.tensor(even) * (torch.tensor(even) / torch.tensor(behind_b)).log()).sum().item()
    settings = {"divergence_reduction": "sequence_sum", "prompts_per_update": 1, "group_size": 256, **settings}
    agent = algorithm(
        fork_model([1e-3, 0.2, 0.798, 1e-3], even, None),
        environment(prompts=("C",), max_new_tokens=2),
        teacher=teacher,
        learning_rate=lambda remaining: 0.1 * remaining,
        **settings,
    )
    agent.learn(100 * 2 * settings["group_size"])
    to_a = 1 / (1 + math.exp(-mismatch)) if avoided else 0.5
    first = distribution(agent, prompt=[3])
    assert mismatch > 0.5 and first[1:3].sum() > 0.99
    assert first[1].item() == pytest.approx(to_a, abs=0.02)
    torch.testing.assert_close(distribution(agent, prompt=[1]), torch.tensor(behind_a), atol=0.02, rtol=0)


def test_distillation_drives_the_divergence_to_zero():
    agent = Distill(
        student(),
        environment(),
        teacher=student(1),
        prompts_per_update=4,
        learning_rate=lambda remaining: 2e-2 * remaining,
    )
    divergences = curve(agent, 6_000, "train/divergence")
    assert divergences[0] > 0.1 and max(divergences[-3:]) < 0.01


def test_distillation_from_data_reads_references_and_never_samples(monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError("sampled")

    monkeypatch.setattr("rlgkd.agents.sources.sample_episodes", refuse)
    env = environment(references=("B C A",), max_new_tokens=4)
    agent = Distill(student(), env, teacher=student(1), student_fraction=0.0, prompts_per_update=2)
    agent.learn(20)
    assert {t.source for t in agent.trajectories} == {Source.DATA}
    assert agent.trajectories[0].tokens_T.tolist() == [1, 2, 3, 1, 0]


def test_on_policy_training_never_reads_a_reference(monkeypatch):
    def refuse(*args):
        raise AssertionError("read a reference")

    monkeypatch.setattr("rlgkd.agents.sources.reference_episodes", refuse)
    monkeypatch.setattr(tiny.WordTask, "encode_completion", refuse)
    Distill(student(), environment(), teacher=student(1), student_fraction=1.0).learn(400)


def test_the_coin_of_the_student_fraction_falls_as_often_as_it_says(monkeypatch):
    sources = []
    agent = Distill(
        student(),
        environment(references=("B",)),
        teacher=student(1),
        student_fraction=0.25,
        prompts_per_update=1,
        group_size=1,
    )
    monkeypatch.setattr(agent, "train", lambda: sources.append(agent.trajectories[0].source))
    agent.learn(500)
    assert 0.15 < np.mean([source is Source.STUDENT for source in sources]) < 0.35


def test_a_batch_from_data_without_references_is_an_error_that_says_so():
    with pytest.raises(DataError, match="student_fraction"):
        Distill(student(), environment(), teacher=student(1), student_fraction=0.0)


def test_what_a_loaded_student_has_frozen_stays_as_it_is():
    module = student()
    module.get_input_embeddings().requires_grad_(False)
    before = module.get_input_embeddings().weight.clone()
    agent = Distill(module, environment(), teacher=student(1), learning_rate=1e-2)
    head = agent.student.head.weight.clone()
    agent.learn(100)
    assert torch.equal(module.get_input_embeddings().weight, before) and not torch.equal(
        agent.student.head.weight, head
    )
    with pytest.raises(ModelError, match="frozen"):
        Distill(module.requires_grad_(False), environment(), teacher=student(1))


def test_the_own_start_as_teacher_stays_where_it_is():
    module = student()
    agent = Reinforce(module, environment(), teacher=module, alpha=0.1, learning_rate=2e-2)
    before = agent.teacher.head.weight.clone()
    agent.learn(600)
    assert torch.equal(agent.teacher.head.weight, before)
    assert not torch.equal(agent.student.head.weight, before)
    assert not any(p.requires_grad for p in agent.teacher.module.parameters())


def run(folder, seed: int):
    agent = Reinforce(
        student(),
        environment(references=("B",)),
        teacher=student(1),
        alpha=0.3,
        student_fraction=0.7,
        seed=seed,
        learning_rate=1e-2,
    )
    agent.set_logger(configure(str(folder), ["csv"]))
    torch.rand(seed + 1)  # nothing depends on the global generator
    agent.learn(1200)
    agent.logger.close()
    rows = (folder / "progress.csv").read_text().splitlines()
    return rows, [p.detach().clone() for p in agent.student.module.parameters()]


def test_the_same_seed_gives_the_same_rows_and_weights_to_the_bit(tmp_path):
    (rows, weights), (again, others), (different, _) = (run(tmp_path / str(n), n // 2) for n in range(3))
    assert rows == again and len(rows) > 5
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert rows != different


def test_a_prompt_that_comes_again_is_sampled_anew():
    agent = Reinforce(student(), environment(), alpha=0.0, learning_rate=1e-9, prompts_per_update=2, group_size=8)
    agent.learn(1)
    first = [t.tokens_T.tolist() for t in agent.trajectories]
    agent.learn(1, reset_num_timesteps=False)
    second = [t.tokens_T.tolist() for t in agent.trajectories]
    assert first[:8] != first[8:] and first != second


def test_bfloat16_trains_about_as_float32_does():
    losses = []
    for precision in ("float32", "bfloat16"):
        agent = Distill(student(), environment(), teacher=student(1), precision=precision, learning_rate=1e-2)
        losses.append(curve(agent, 600, "train/loss"))
        assert all(p.dtype == torch.float32 for p in agent.student.module.parameters())
    assert losses[0] != losses[1], "there was no mixed precision"
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.3)
