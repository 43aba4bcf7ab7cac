"""Eq. 5's gradient against a slow loop written from the formula, and against worlds small enough to count out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tiny
import torch
from gradients import accumulate
from torch import Tensor

from rlgkd.agents.micro_batch import micro_batches
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops import behaviour_policy, divergence
from rlgkd.ops.returns import leave_one_out, mean_baseline
from rlgkd.types import Batch, Item, Score, Source, StopReason, Trajectory

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
END = 0
BUDGET = 10**6


def equation_5(**given: object) -> Objective:
    """Its two averages to the letter: the policy term sums over a text, the divergence averages."""
    return Objective(**{"policy_reduction": "sequence_sum", "divergence_reduction": "sequence_mean"} | given)


def policy(seed: int, temperature: float = 1.0) -> LanguageModel:
    return LanguageModel(tiny.model(vocabulary=4, seed=seed).double(), TOKENIZER, temperature=temperature)


def trajectory(prompt: Sequence[int], completion: Sequence[int], source: Source = Source.STUDENT) -> Trajectory:
    length = len(prompt) + len(completion)
    return Trajectory(
        item=Item(key="", prompt=""),
        tokens_T=np.array([*prompt, *completion]),
        action_mask_T=np.arange(length) >= len(prompt),
        logp_T=np.zeros(length),
        entropy_T=np.zeros(length),
        stop=StopReason.END,
        source=source,
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


# Prompts and completions of several lengths, the end token (which is the padding too) as an action and in a prompt.
BATCH = [
    trajectory([1], [2, 3, END]),
    trajectory([2, 3, 1, 0, 2], [1, 1]),
    trajectory([3, 3], [END]),
    trajectory([1, 2], [3, 2, 1, 3, END]),
]
ADVANTAGES = torch.tensor([[1.0], [-0.5], [2.0], [0.25]])


def gradient(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel | None,
    batch: Sequence[Trajectory] = BATCH,
    advantages_BL: Tensor = ADVANTAGES,
    token_budget: int = BUDGET,
) -> Tensor:
    """The gradient with respect to all parameters, in one vector."""
    student.module.zero_grad()
    accumulate(objective, student, teacher, batch, advantages_BL, token_budget=token_budget)
    return torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None])


def test_the_entropy_is_as_sampled_where_the_text_is_the_students_own_and_else_as_it_is_now():
    student = policy(0)
    own = dataclasses.replace(BATCH[0], entropy_T=0.5 * BATCH[0].action_mask_T)
    for objective in (equation_5(alpha=1.0), equation_5(alpha=0.5), equation_5(alpha=1.0, horizon=1.0)):
        for other in (Source.DATA, Source.MIXED):
            rest = dataclasses.replace(BATCH[3], source=other)
            batch = Batch.collate([rest], pad=END)
            with torch.no_grad():
                now_NV = student.logits(student.states(batch)).softmax(-1)
            for token_budget in (BUDGET, 1):
                found = accumulate(
                    objective, student, policy(1), [own, rest], ADVANTAGES[:2], token_budget=token_budget
                )
                expected = (0.5 * own.length + torch.special.entr(now_NV).sum().item()) / (own.length + rest.length)
                assert found.entropy == pytest.approx(expected)


def slow_gradient(
    objective: Objective, student: LanguageModel, teacher: LanguageModel, pointwise: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Eq. 5 as it is written: sequence by sequence without padding, token by token, with autograd."""
    sequences, tokens = len(BATCH), sum(t.length for t in BATCH)
    loss = torch.zeros((), dtype=torch.float64)
    for t, advantage in zip(BATCH, ADVANTAGES[:, 0].double(), strict=True):
        ids = torch.from_numpy(t.tokens_T)[None]
        log_q, log_p = ((lm.module(ids).logits[0] / lm.temperature).log_softmax(-1) for lm in (student, teacher))
        weight = {"sequence_mean": 1 / (t.length * sequences), "token_mean": 1 / tokens, "sequence_sum": 1 / sequences}
        for place in np.flatnonzero(t.action_mask_T):
            q, p = log_q[place - 1], log_p[place - 1].detach()
            if t.source is Source.STUDENT:
                reward_term = weight[objective.policy_reduction] * advantage * q[t.tokens_T[place]]
                loss = loss - (1 - objective.alpha) * reward_term
            loss = loss + objective.alpha * weight[objective.divergence_reduction] * pointwise(p, q)
    student.module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return (q.exp() * (q - p)).sum()


def jsd(p: Tensor, q: Tensor) -> Tensor:
    m = (0.9 * p.exp() + 0.1 * q.exp()).log()
    return 0.9 * (p.exp() * (p - m)).sum() + 0.1 * (q.exp() * (q - m)).sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("policy_reduction", ["sequence_sum", "token_mean", "sequence_mean"])
def test_the_gradient_is_that_of_equation_5_for_every_reduction(alpha, policy_reduction):
    student, teacher = policy(0, temperature=1.3), policy(1, temperature=0.8)
    for reduction in ("sequence_mean", "token_mean", "sequence_sum"):
        objective = equation_5(alpha=alpha, policy_reduction=policy_reduction, divergence_reduction=reduction)
        torch.testing.assert_close(
            gradient(objective, student, teacher),
            slow_gradient(objective, student, teacher, reverse_kl),
            atol=1e-7,
            rtol=1e-6,
        )


def test_the_gradient_with_jsd_is_the_papers():
    student, teacher = policy(0), policy(1)
    objective = equation_5(alpha=0.3, divergence="jsd", beta=0.9)
    torch.testing.assert_close(
        gradient(objective, student, teacher), slow_gradient(objective, student, teacher, jsd), atol=1e-7, rtol=1e-6
    )


def test_alpha_1_is_exactly_distillation_and_alpha_0_exactly_reinforcement():
    student, teacher = policy(0), policy(1)
    pure = gradient(equation_5(alpha=1.0), student, teacher)
    assert torch.equal(pure, gradient(equation_5(alpha=1.0), student, teacher, advantages_BL=1e6 * ADVANTAGES))
    pure = gradient(equation_5(alpha=0.0), student, None)
    assert torch.equal(pure, gradient(equation_5(alpha=0.0), student, teacher))


def test_at_alpha_0_an_infinite_divergence_does_not_spoil_the_gradient():
    student, teacher = policy(0), policy(1)
    with torch.no_grad():
        teacher.head.weight.mul_(1e308)
    assert gradient(equation_5(alpha=0.0), student, teacher).isfinite().all()


@pytest.mark.parametrize("name", divergence.names())
def test_where_the_student_is_the_teacher_loss_and_gradient_are_zero(name):
    student = policy(0)
    beta = 0.9 if name == "jsd" else None
    objective = equation_5(alpha=1.0, divergence=name, beta=beta)
    means = accumulate(objective, student, student, BATCH, ADVANTAGES)
    assert abs(means.loss) < 1e-12 and abs(means.divergence) < 1e-12
    assert all(p.grad.abs().max() < 1e-12 for p in student.module.parameters())


def test_padding_batch_order_and_micro_batches_do_not_change_the_gradient():
    student, teacher, objective = policy(0), policy(1), equation_5(alpha=0.3, divergence_reduction="token_mean")
    whole = gradient(objective, student, teacher)
    for budget in (1, 8, 14):
        torch.testing.assert_close(
            gradient(objective, student, teacher, token_budget=budget), whole, atol=1e-9, rtol=1e-6
        )
    order = [2, 0, 3, 1]
    shuffled = gradient(objective, student, teacher, [BATCH[n] for n in order], ADVANTAGES[order], token_budget=8)
    torch.testing.assert_close(shuffled, whole, atol=1e-9, rtol=1e-6)


def test_micro_batches_hold_every_row_once_within_the_budget():
    lengths = [3, 9, 2, 4, 9, 20]
    batch = [trajectory([1], [1] * (length - 1)) for length in lengths]
    groups = list(micro_batches(policy(0), batch, 18))
    assert sorted(row for group in groups for row in group.rows) == list(range(6))
    assert all(len(group.rows) == 1 or group.batch.tokens_BT.numel() <= 18 for group in groups)
    assert len(groups) == 3
    for group in groups:
        assert group.batch.attention_mask_BT.sum(1).tolist() == [lengths[row] for row in group.rows]


def test_the_prompt_carries_no_loss():
    student, teacher = policy(0), policy(1)
    prompt = trajectory([1, 2, 3], [2])
    objective = equation_5(alpha=1.0, divergence_reduction="sequence_sum")
    means = accumulate(objective, student, teacher, [prompt], torch.zeros(1, 1))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        log_p, log_q = (lm.module(ids).logits[0, -1].log_softmax(-1) for lm in (teacher, student))
    assert means.loss == pytest.approx(reverse_kl(log_p, log_q).item(), abs=1e-9)


def test_the_policy_term_applies_to_the_students_own_texts_alone():
    student, teacher, objective = policy(0), policy(1), equation_5(alpha=0.5)
    data = [trajectory([1], [2, 3, END], Source.DATA)]
    given = gradient(objective, student, teacher, data, torch.tensor([[5.0]]))
    torch.testing.assert_close(given, 0.5 * gradient(equation_5(alpha=1.0), student, teacher, data, torch.zeros(1, 1)))


# An enumerable world: the prompt A, four tokens, at most three of them.

PROMPT = [1]
ALL = [
    [*front, last]
    for length in (1, 2, 3)
    for front in itertools.product((1, 2, 3), repeat=length - 1)
    for last in ((END,) if length < 3 else range(4))
]


def reward(completion: Sequence[int]) -> float:
    return completion.count(2) - 0.5 * len(completion) + (completion[0] == 3)


def log_likelihood(lm: LanguageModel, completion: Sequence[int]) -> Tensor:
    ids = torch.tensor([[*PROMPT, *completion]])
    logp_TV = lm.module(ids).logits[0].log_softmax(-1)
    return sum(logp_TV[len(PROMPT) - 1 + n, token] for n, token in enumerate(completion))


def expected_gradient(objective: Objective, student: LanguageModel, teacher: LanguageModel | None) -> Tensor:
    """sum_y p(y) times the gradient of the batch [y], whose advantage is its reward."""
    total = 0.0
    for y in ALL:
        with torch.no_grad():
            probability = log_likelihood(student, y).exp()
        one = gradient(objective, student, teacher, [trajectory(PROMPT, y)], torch.tensor([[reward(y)]]))
        total = total + probability * one
    return total


def exact_gradient(student: LanguageModel) -> Tensor:
    """Of -E[r], by autograd through the probabilities of all texts."""
    student.module.zero_grad()
    expected = sum(log_likelihood(student, y).exp() * reward(y) for y in ALL)
    (-expected).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


def test_the_world_is_complete():
    student = policy(0)
    with torch.no_grad():
        assert sum(log_likelihood(student, y).exp() for y in ALL).item() == pytest.approx(1.0)


def test_reinforce_estimates_the_exact_gradient_of_the_expected_reward():
    student = policy(0)
    expected = expected_gradient(equation_5(alpha=0.0), student, None)
    torch.testing.assert_close(expected, exact_gradient(student), atol=1e-6, rtol=1e-6)


def test_a_mean_over_the_tokens_would_not():
    student = policy(0)
    wrong = expected_gradient(equation_5(alpha=0.0, policy_reduction="sequence_mean"), student, None)
    assert (wrong - exact_gradient(student)).abs().max() > 1e-3


def test_leaving_one_out_stays_unbiased():
    student = policy(0)
    with torch.no_grad():
        p_Y = torch.stack([log_likelihood(student, y).exp() for y in ALL])
    score = [
        gradient(equation_5(alpha=0.0), student, None, [trajectory(PROMPT, y)], torch.ones(1, 1)) for y in ALL
    ]  # of -log p(y)
    pairs = list(itertools.product(range(len(ALL)), repeat=2))
    reward_PG = torch.tensor([[reward(ALL[a]), reward(ALL[b])] for a, b in pairs], dtype=torch.float64)
    valid_PG = torch.ones_like(reward_PG, dtype=torch.bool)
    weight_Y = torch.zeros(len(ALL), dtype=torch.float64)
    for (a, b), (of_a, of_b) in zip(pairs, leave_one_out(reward_PG, valid_PG), strict=True):
        weight_Y[a] += p_Y[a] * p_Y[b] * of_a / 2
        weight_Y[b] += p_Y[a] * p_Y[b] * of_b / 2
    mean = sum(w * g for w, g in zip(weight_Y, score, strict=True))
    exact = exact_gradient(student)
    torch.testing.assert_close(mean, exact, atol=1e-6, rtol=1e-6)
    # The mean that includes one's own reward shrinks it by (G - 1) / G, and by nothing else.
    torch.testing.assert_close(mean_baseline(reward_PG, valid_PG), leave_one_out(reward_PG, valid_PG) / 2)


def test_importance_weights_make_texts_of_another_sampler_estimate_the_same_gradient():
    student, teacher = policy(0), policy(1)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        log_b_V = behaviour_policy.teacher_mixed(teacher.module(ids).logits[0, -1], student.module(ids).logits[0, -1])
    rewards = [0.3, -1.0, 2.0, 0.5]
    expected = {}
    for name, settings in (("weighed", {"policy_loss": "clipped_weight", "clip_high": 1e6}), ("plain", {})):
        total = 0.0
        for token, log_b in enumerate(log_b_V.tolist()):
            t = trajectory(PROMPT, [token], Source.MIXED)
            t = dataclasses.replace(t, logp_T=np.array([0.0, log_b]))
            objective = equation_5(alpha=0.0, **settings)
            total = total + math.exp(log_b) * gradient(objective, student, None, [t], torch.tensor([[rewards[token]]]))
        expected[name] = total
    student.module.zero_grad()
    p_V = student.module(ids).logits[0, -1].softmax(-1)
    (-p_V @ torch.tensor(rewards, dtype=torch.float64)).backward()
    exact = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(expected["weighed"], exact, atol=1e-6, rtol=1e-5)
    assert (expected["plain"] - exact).abs().max() > 1e-3


def test_the_sampled_estimator_expects_the_exact_gradient_at_horizon_0():
    student, teacher = policy(0), policy(1)
    settings = {"alpha": 1.0, "divergence_reduction": "sequence_sum"}
    exact = expected_gradient(equation_5(**settings), student, teacher)
    assert exact.abs().max() > 1e-2
    for estimator in ("sampled", "sampled_centred"):
        sampled = expected_gradient(equation_5(**settings, estimator=estimator), student, teacher)
        torch.testing.assert_close(sampled, exact, atol=1e-6, rtol=1e-6)


def test_k2_descends_the_reverse_kl_k3_the_forward_kl_and_k1_nothing_at_all():
    student, teacher = policy(0), policy(1)
    settings = {"alpha": 1.0, "divergence_reduction": "sequence_sum"}
    reverse, forward = (
        expected_gradient(equation_5(**settings, divergence=name), student, teacher)
        for name in ("reverse_kl", "forward_kl")
    )
    k2 = expected_gradient(equation_5(**settings, estimator="k2"), student, teacher)
    torch.testing.assert_close(k2, reverse, atol=1e-6, rtol=1e-6)
    k3 = expected_gradient(equation_5(**settings, estimator="k3"), student, teacher)
    torch.testing.assert_close(k3, forward, atol=1e-6, rtol=1e-6)
    assert (reverse - forward).abs().max() > 1e-2
    # k1 as a loss is the score with a weight of one: what RL at a reward of 1 everywhere descends.
    k1 = sum(
        log_likelihood(student, y).exp().detach()
        * gradient(equation_5(alpha=0.0), student, None, [trajectory(PROMPT, y)], torch.ones(1, 1))
        for y in ALL
    )
    assert k1.abs().max() < 1e-6
    with pytest.raises(SettingError, match="expected gradient is 0"):
        Objective(estimator="k1")


def test_the_cross_entropy_of_the_teachers_texts_expects_the_gradient_of_its_forward_kl():
    student, teacher = policy(0), policy(1)
    settings = {
        "alpha": 1.0,
        "divergence": "forward_kl",
        "divergence_reduction": "sequence_sum",
        "student_fraction": 0.0,
    }
    total, exact = 0.0, 0.0
    for y in ALL:
        with torch.no_grad():
            probability = log_likelihood(teacher, y).exp()
        text = [trajectory(PROMPT, y, Source.TEACHER)]
        sampled = equation_5(**settings, estimator="sampled")
        given = gradient(sampled, student, teacher, text, torch.zeros(1, 1))
        assert torch.equal(gradient(sampled, student, None, text, torch.zeros(1, 1)), given)
        known, unknown = (
            accumulate(sampled, student, lm, text, torch.zeros(1, 1)).divergence for lm in (teacher, None)
        )
        assert known == unknown > 0, "of texts that are not the teacher's the log-ratio would be no divergence"
        total = total + probability * given
        exact = exact + probability * gradient(equation_5(**settings), student, teacher, text, torch.zeros(1, 1))
    torch.testing.assert_close(total, exact, atol=1e-6, rtol=1e-6)


def test_centring_leaves_the_mean_of_the_sampled_gradient_and_takes_from_its_variance():
    student, teacher = policy(0), policy(1)
    spread = {}
    for estimator in ("sampled", "sampled_centred"):
        objective = equation_5(alpha=1.0, divergence_reduction="sequence_sum", estimator=estimator)
        with torch.no_grad():
            p_Y = [log_likelihood(student, y).exp() for y in ALL]
        gradients = [gradient(objective, student, teacher, [trajectory(PROMPT, y)], torch.zeros(1, 1)) for y in ALL]
        mean = sum(p * g for p, g in zip(p_Y, gradients, strict=True))
        spread[estimator] = sum(p * (g - mean).square().sum() for p, g in zip(p_Y, gradients, strict=True)).item()
    assert spread["sampled_centred"] < 0.9 * spread["sampled"]


def sequence_kl(student: LanguageModel, teacher: LanguageModel) -> Tensor:
    """KL(p_S || p_T) over all texts."""
    log_q_Y, log_p_Y = (torch.stack([log_likelihood(lm, y) for y in ALL]) for lm in (student, teacher))
    return (log_q_Y.exp() * (log_q_Y - log_p_Y.detach())).sum()


def sequence_kl_gradient(student: LanguageModel, teacher: LanguageModel) -> Tensor:
    student.module.zero_grad()
    sequence_kl(student, teacher).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_at_horizon_1_the_gradient_is_that_of_the_kl_over_texts_and_at_horizon_0_it_is_not(estimator):
    student, teacher = policy(0), policy(1)
    settings = {"alpha": 1.0, "divergence_reduction": "sequence_sum", "estimator": estimator}
    expected = sequence_kl_gradient(student, teacher)
    whole = expected_gradient(equation_5(**settings, horizon=1.0), student, teacher)
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=1e-6)
    near = expected_gradient(equation_5(**settings), student, teacher)
    assert (near - expected).abs().max() > 1e-2


def test_the_kl_over_texts_is_the_sum_of_the_expected_kls_at_their_prefixes():
    student, teacher = policy(0), policy(1)
    objective = equation_5(alpha=1.0, divergence_reduction="sequence_sum")
    total = 0.0
    for y in ALL:
        probability = log_likelihood(student, y).exp().item()
        total += probability * accumulate(objective, student, teacher, [trajectory(PROMPT, y)], torch.zeros(1, 1)).loss
    assert total == pytest.approx(sequence_kl(student, teacher).item(), abs=1e-9)


def test_on_texts_of_an_older_student_the_exact_divergence_needs_no_ratio_and_the_sampled_one_is_another():
    student, teacher, old = policy(0), policy(1), policy(2)

    def over_old_texts(source: Source, **estimator: str) -> Tensor:
        objective = equation_5(alpha=1.0, divergence_reduction="sequence_sum", **estimator)
        total = torch.zeros(())
        for y in ALL:
            with torch.no_grad():
                probability = log_likelihood(old, y).exp()
            one = gradient(objective, student, teacher, [trajectory(PROMPT, y, source)], torch.zeros(1, 1))
            total = total + probability * one
        return total

    found, sampled = over_old_texts(Source.REPLAY), over_old_texts(Source.STUDENT, estimator="sampled")
    # E_{y ~ old} sum_n KL(p_S || p_T) at y's prefixes, by autograd: a sum over given prefixes, in which p_S(y) is not.
    student.module.zero_grad()
    for y in ALL:
        ids = torch.tensor([[*PROMPT, *y]])
        with torch.no_grad():
            probability, log_p_TV = log_likelihood(old, y).exp(), teacher.module(ids).logits[0].log_softmax(-1)
        log_q_TV = student.module(ids).logits[0].log_softmax(-1)
        places = range(len(PROMPT) - 1, len(PROMPT) - 1 + len(y))
        (probability * sum(reverse_kl(log_p_TV[n], log_q_TV[n]) for n in places)).backward()
    exact = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)
    assert (sampled - exact).norm() > 0.1 * exact.norm()


def test_the_entropy_bonus_has_the_gradient_of_the_entropy():
    student, with_bonus = policy(0, temperature=1.3), equation_5(alpha=0.0, entropy_bonus=0.7)
    given = gradient(with_bonus, student, None) - gradient(equation_5(alpha=0.0), student, None)
    total = 0.0
    for t in BATCH:
        log_q = (student.module(torch.from_numpy(t.tokens_T)[None]).logits[0] / 1.3).log_softmax(-1)
        total = total - sum((log_q[n - 1].exp() * log_q[n - 1]).sum() for n in np.flatnonzero(t.action_mask_T))
    student.module.zero_grad()
    (-0.7 * total / len(BATCH)).backward()
    expected = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(given, expected, atol=1e-7, rtol=1e-6)


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    student, old = policy(0), policy(2)
    batch = []
    for t in BATCH:
        ids = torch.from_numpy(t.tokens_T)
        with torch.no_grad():
            logp_T = old.module(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        logp_T = np.concatenate([[0.0], logp_T.numpy()]) * t.action_mask_T
        batch.append(dataclasses.replace(t, logp_T=logp_T.astype(np.float32)))
    settings = {"policy_loss": "clipped", "clip_low": 0.1, "clip_high": 0.3, "policy_reduction": "sequence_mean"}
    given = gradient(equation_5(alpha=0.0, **settings, ratio="sequence"), student, None, batch)
    loss, ratios = 0.0, []
    for t, advantage in zip(batch, ADVANTAGES[:, 0].double(), strict=True):
        ids, places = torch.from_numpy(t.tokens_T), np.flatnonzero(t.action_mask_T)
        log_q = student.module(ids[None]).logits[0].log_softmax(-1)
        log_ratio = torch.stack([log_q[n - 1, ids[n]] - float(t.logp_T[n]) for n in places]).mean()
        ratios.append(log_ratio.exp().item())
        ratio = log_ratio.exp()
        loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage) / len(batch)
    student.module.zero_grad()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-5)
    assert any(not 0.9 < ratio < 1.3 for ratio in ratios) and any(0.9 < ratio < 1.3 for ratio in ratios)
    assert (given - gradient(equation_5(alpha=0.0, **settings), student, None, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "token_mean"])
def test_a_trajectory_without_an_advantage_is_as_if_it_were_not_there_for_the_policy_term(reduction):
    student, objective = policy(0), equation_5(alpha=0.0, policy_reduction=reduction)
    missing = ADVANTAGES.clone()
    missing[2] = math.nan
    rest = [0, 1, 3]
    given = gradient(objective, student, None, advantages_BL=missing)
    torch.testing.assert_close(given, gradient(objective, student, None, [BATCH[n] for n in rest], ADVANTAGES[rest]))
    distilled = equation_5(alpha=1.0)
    teacher = policy(1)
    assert torch.equal(
        gradient(distilled, student, teacher, advantages_BL=missing), gradient(distilled, student, teacher)
    )


def test_an_advantage_of_each_action_weighs_that_action():
    student = policy(0)
    each_BL = torch.arange(20.0).view(4, 5)
    given = gradient(equation_5(alpha=0.0), student, None, advantages_BL=each_BL, token_budget=8)
    loss = 0.0
    for row, t in enumerate(BATCH):
        ids = torch.from_numpy(t.tokens_T)
        log_q = student.module(ids[None]).logits[0].log_softmax(-1)
        for place, n in enumerate(np.flatnonzero(t.action_mask_T)):
            loss = loss - each_BL[row, place] * log_q[n - 1, ids[n]] / len(BATCH)
    student.module.zero_grad()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-5)


def test_the_future_does_not_depend_on_the_batch_and_texts_from_data_have_none():
    student, teacher, objective = policy(0), policy(1), equation_5(alpha=0.3, horizon=0.7)
    whole = gradient(objective, student, teacher)
    torch.testing.assert_close(gradient(objective, student, teacher, token_budget=8), whole, atol=1e-9, rtol=1e-6)
    assert (whole - gradient(equation_5(alpha=0.3), student, teacher)).abs().max() > 1e-3
    data = [dataclasses.replace(t, source=Source.DATA) for t in BATCH]
    torch.testing.assert_close(
        gradient(objective, student, teacher, data), gradient(equation_5(alpha=0.3), student, teacher, data)
    )


def test_a_training_step_makes_no_tensor_on_the_default_device():
    student, teacher = policy(0), policy(1)
    objective = equation_5(alpha=0.3, divergence="jsd", beta=0.9)
    expected = gradient(objective, student, teacher)
    torch.set_default_device("meta")  # what is made without naming its device is unusable
    try:
        given = gradient(objective, student, teacher)
    finally:
        torch.set_default_device(None)
    assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"horizon": 1.5}, "horizon"),
        ({"alpha": 1.0, "horizon": 0.5, "student_fraction": 0.0}, "horizon"),
        ({"alpha": float("nan")}, "alpha"),
        ({"student_fraction": -0.1}, "student_fraction"),
        ({"divergence": "reverse-kl"}, "divergence"),
        ({"divergence": "jsd"}, "beta"),
        ({"divergence": "jsd", "beta": 2.0}, "beta"),
        ({"beta": 0.5}, "beta"),
        ({"skew": 0.5}, "skew"),
        ({"divergence": "skew_forward_kl", "skew": 1.0}, "skew"),
        ({"estimator": "approximate"}, "estimator"),
        ({"estimator": "k1"}, "estimator"),
        ({"estimator": "k2", "divergence": "forward_kl", "student_fraction": 0.0, "alpha": 1.0}, "estimator"),
        ({"estimator": "sampled", "divergence": "forward_kl"}, "estimator"),
        ({"estimator": "sampled", "divergence": "jsd", "beta": 0.5}, "estimator"),
        ({"estimator": "sampled", "student_fraction": 0.5}, "estimator"),
        ({"alpha": 0.0, "student_fraction": 0.5}, "student_fraction"),
        ({"ratio": "sequence"}, "ratio"),
        ({"policy_loss": "clipped", "ratio": "text"}, "ratio"),
        ({"entropy_bonus": -1.0}, "entropy_bonus"),
        ({"policy_reduction": "mean"}, "policy_reduction"),
        ({"teacher_top_k": 0}, "teacher_top_k"),
        ({"policy_loss": "ppo"}, "policy_loss"),
        ({"clip_low": 0.1}, "clip_low"),
        ({"policy_loss": "clipped_weight", "clip_low": 0.1}, "clip_low"),
        ({"policy_loss": "clipped", "clip_low": 1.5}, "clip_low"),
        ({"policy_loss": "clipped", "clip_high": -0.1}, "clip_high"),
        ({"alpha": 0.5, "student_fraction": 0.0}, "alpha"),
    ],
)
def test_a_setting_that_does_not_work_is_refused_by_its_name(settings, field):
    with pytest.raises(SettingError) as error:
        Objective(**settings)
    assert error.value.field == field


def test_over_the_coin_the_policy_term_has_the_weight_that_equation_5_gives_it() -> None:
    student, teacher = policy(0), policy(1)
    data = [dataclasses.replace(t, source=Source.DATA) for t in BATCH]
    mixed = equation_5(alpha=0.3, student_fraction=0.25)
    expected = 0.25 * gradient(mixed, student, teacher) + 0.75 * gradient(mixed, student, teacher, batch=data)
    on_policy = gradient(equation_5(alpha=0.3), student, teacher)
    # The texts are the same, so is the divergence; the reward counts once.
    torch.testing.assert_close(expected, on_policy, rtol=1e-5, atol=1e-6)
