"""Gates in the loss: against a slow loop written from the papers' formulas, and in a world that can be counted out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from test_objective import (
    ALL,
    BUDGET,
    END,
    PROMPT,
    equation_5,
    exact_gradient,
    log_likelihood,
    policy,
    reward,
    trajectory,
)
from torch import Tensor

from rlgkd.agents.advantages import Credit
from rlgkd.agents.gating import gated
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import accumulate_gradient
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops import gate
from rlgkd.types import Score, Source, Trajectory


def log_probabilities(lm: LanguageModel, t: Trajectory) -> Tensor:
    """[L, V] at a text's actions, with their gradient."""
    logits_TV = lm.module(torch.from_numpy(t.tokens_T)[None]).logits[0]
    return logits_TV[np.flatnonzero(t.action_mask_T) - 1].log_softmax(-1)


def sampled(student: LanguageModel, prompt: Sequence[int], completion: Sequence[int], earned: float) -> Trajectory:
    """A text of the student's as sampling records it, and what it earned."""
    t = trajectory(prompt, completion)
    with torch.no_grad():
        logp_LV = log_probabilities(student, t)
    logp_T, entropy_T = np.zeros(len(t.tokens_T)), np.zeros(len(t.tokens_T))
    logp_T[t.action_mask_T] = logp_LV.gather(1, torch.tensor(completion)[:, None])[:, 0]
    entropy_T[t.action_mask_T] = torch.special.entr(logp_LV.exp()).sum(1)
    return dataclasses.replace(t, logp_T=logp_T, entropy_T=entropy_T, score=Score(reward=earned))


def gradient(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel | None,
    batch: Sequence[Trajectory],
    advantages_BL: Tensor,
    token_budget: int = BUDGET,
) -> Tensor:
    """The gradient of all parameters, in one vector, of a batch whose gate has been asked."""
    valid_B = torch.tensor([not math.isnan(t.score.reward) for t in batch])
    rollout = Rollout(trajectories=list(batch)).split(student, token_budget)
    credit, _ = gated(Credit(advantages_BL, valid_B), rollout, objective, student, teacher, group_size=2)
    student.module.zero_grad()
    accumulate_gradient(student, teacher, objective, rollout, credit)
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@dataclasses.dataclass
class Known:
    """What is known of one text, and of all, as numbers."""

    advantage: float
    outcome: int
    gaps: list[float]
    all_texts: list[Known] = dataclasses.field(default_factory=list)


SlowGate = Callable[[Known], tuple[list[float], list[float]]]
"""The weights of both terms at each action of a text, in plain Python."""


def sign(number: float) -> int:
    return (number > 0) - (number < 0)


def slow_rlsd(text: Known) -> tuple[list[float], list[float]]:
    ratios = [min(max(math.exp(sign(text.advantage) * d), 0.7), 1.3) for d in text.gaps]
    return [1 - 0.4 + 0.4 * ratio for ratio in ratios], [1.0] * len(ratios)


def slow_iw_opd(text: Known) -> tuple[list[float], list[float]]:
    total = sum(abs(d) for d in text.gaps)
    shares = [sum(abs(d) for d in text.gaps[:n]) / total for n in range(len(text.gaps))]
    return [1.0] * len(shares), [1 + 0.7 * (1 - share) for share in shares]


SLOW: dict[str, tuple[SlowGate, dict[str, float]]] = {
    "rlsd": (slow_rlsd, {"reweighting": 0.4, "reweighting_clip": 0.3}),
    "iw_opd": (slow_iw_opd, {"prefix_gain": 0.7}),
}
"""Each gate once more, from its paper, with settings that are not its defaults."""
ADVANTAGES = torch.tensor([[1.0], [-1.0], [0.5], [-0.5], [2.0], [0.0]], dtype=torch.float64)


def texts_of(student: LanguageModel) -> list[Trajectory]:
    """Three prompts with two texts each; some right, some wrong, of one to five tokens."""
    return [
        sampled(student, [1], [2, 3, END], 1.0),
        sampled(student, [1], [3, 1, 2, 2, END], 0.0),
        sampled(student, [2, 3, 1], [1, 1], 0.9),
        sampled(student, [2, 3, 1], [END], 0.1),
        sampled(student, [3], [2, 2, 1, 3], 1.0),
        sampled(student, [3], [1, 3, END], 0.0),
    ]


def slow_gradient(
    objective: Objective, student: LanguageModel, teacher: LanguageModel, batch: Sequence[Trajectory], slow: SlowGate
) -> Tensor:
    """The loss as its formula is written: text by text, token by token, with autograd."""
    known, terms = [], []
    for t, advantage in zip(batch, ADVANTAGES[:, 0], strict=True):
        tokens = t.tokens_T[t.action_mask_T].tolist()
        q_LV, p_LV = log_probabilities(student, t), log_probabilities(teacher, t).detach()
        gaps = [(p_V[v] - q_V[v]).item() for p_V, q_V, v in zip(p_LV, q_LV, tokens, strict=True)]
        known.append(Known(advantage.item(), 1 if t.score.reward >= 0.5 else -1, gaps))
        policy_terms = [-advantage * q_V[v] for q_V, v in zip(q_LV, tokens, strict=True)]
        if objective.estimator == "sampled":
            distilled = [-d * q_V[v] for d, q_V, v in zip(gaps, q_LV, tokens, strict=True)]
        else:
            distilled = list((q_LV.exp() * (q_LV - p_LV)).sum(1))
        terms.append((policy_terms, distilled))
    loss = torch.zeros((), dtype=torch.float64)
    for text, (policy_terms, distilled) in zip(known, terms, strict=True):
        text.all_texts = known
        for weight_policy, weight_divergence, a, b in zip(*slow(text), policy_terms, distilled, strict=True):
            loss = loss + (1 - objective.alpha) * weight_policy * a + objective.alpha * weight_divergence * b
    student.module.zero_grad()
    (loss / sum(t.length for t in batch)).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize("name", SLOW)
def test_the_gradient_with_a_gate_is_that_of_its_papers_formula(name: str, estimator: str) -> None:
    student, teacher = policy(0), policy(1)
    slow, settings = SLOW[name]
    objective = Objective(alpha=0.3, reduction="token_mean", estimator=estimator, gate=name, **settings)
    batch = texts_of(student)
    expected = slow_gradient(objective, student, teacher, batch, slow)
    plain = slow_gradient(objective, student, teacher, batch, lambda text: ([1.0] * len(text.gaps),) * 2)
    assert (expected - plain).abs().max() > 1e-3
    for token_budget in (BUDGET, 8):
        found = gradient(objective, student, teacher, batch, ADVANTAGES, token_budget)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


NEUTRAL = {"rlsd": {"reweighting": 0.0}, "iw_opd": {"prefix_gain": 0.0}}
"""Settings at which a gate does nothing."""


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_gate_changes_no_bit(name: str) -> None:
    student, teacher = policy(0), policy(1)
    batch = texts_of(student)
    for settings in ({"alpha": 0.3}, {"alpha": 0.6, "estimator": "sampled"}, {"alpha": 0.5, "horizon": 0.5}):
        plain = gradient(Objective(**settings, reduction="token_mean"), student, teacher, batch, ADVANTAGES)
        neutral = Objective(**settings, reduction="token_mean", gate=name, **NEUTRAL[name])
        assert torch.equal(gradient(neutral, student, teacher, batch, ADVANTAGES), plain)


def test_off_policy_texts_and_the_entropy_bonus_are_not_weighed() -> None:
    student, teacher = policy(0), policy(1)
    gate.GATES["silent"] = lambda mask_BL: (0.0 * mask_BL, 0.0 * mask_BL)
    try:
        silent = Objective(alpha=0.3, reduction="token_mean", student_fraction=0.5, gate="silent")
        data = [dataclasses.replace(t, source=Source.DATA) for t in texts_of(student)[:2]]
        plain = silent.model_copy(update={"gate": Objective().gate})
        zeros = torch.zeros(2, 1)
        assert torch.equal(
            gradient(silent, student, teacher, data, zeros), gradient(plain, student, teacher, data, zeros)
        )
        own = texts_of(student)
        assert gradient(silent, student, teacher, own, ADVANTAGES).abs().max() == 0.0
        bonus = silent.model_copy(update={"entropy_bonus": 0.5})
        alone = plain.model_copy(update={"entropy_bonus": 0.5})
        nothing = torch.zeros_like(ADVANTAGES)
        torch.testing.assert_close(
            gradient(bonus, student, teacher, own, ADVANTAGES),
            gradient(alone, student, student, own, nothing),
            atol=1e-9, rtol=1e-6,
        )  # fmt: skip
    finally:
        del gate.GATES["silent"]


def test_with_a_horizon_later_divergences_count_by_their_own_weights() -> None:
    """The loss is sum_n v h_n D_n: y_n answers for h_m D_m of later m, not for h_n D_m."""
    student, teacher = policy(0), policy(1)
    batch = texts_of(student)[:1]
    advantages = torch.zeros(1, 1)

    def found(**settings: object) -> Tensor:
        return gradient(Objective(alpha=1.0, reduction="token_mean", **settings), student, teacher, batch, advantages)

    def only(mask_BL: Tensor, *, kept_number: int = 0) -> tuple[None, Tensor]:
        return None, (mask_BL.cumsum(1) == kept_number + 1).double()

    gate.GATES["only"] = only
    try:
        parts = [found(gate="only", kept_number=n, horizon=1.0) for n in range(3)]
    finally:
        del gate.GATES["only"]
    torch.testing.assert_close(sum(parts), found(horizon=1.0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        (lambda mask_BL: (-1.0 * mask_BL, None), "it gave -1; its weights must be finite and 0 or more"),
        (lambda mask_BL: (None, mask_BL * math.nan), "finite and 0 or more"),
        (lambda mask_BL: (mask_BL[:, 0], None), r"return \[B, L\] or \[B, 1\]"),
    ],
)
def test_what_are_no_weights_is_refused(weights: Callable[..., object], why: str) -> None:
    student = policy(0)
    gate.GATES["wrong"] = weights
    try:
        objective = Objective(alpha=0.0, gate="wrong")
        with pytest.raises(SettingError, match=why):
            gradient(objective, student, None, texts_of(student), ADVANTAGES)
    finally:
        del gate.GATES["wrong"]


# The enumerable world of test_objective: the prompt A, four tokens, at most three of them.


def expected_gradient(objective: Objective, student: LanguageModel, teacher: LanguageModel) -> Tensor:
    """sum_y p(y) times the gradient of the batch [y], whose advantage is its reward."""
    total = 0.0
    for y in ALL:
        with torch.no_grad():
            probability = log_likelihood(student, y).exp()
        advantage = torch.tensor([[reward(y)]], dtype=torch.float64)
        one = gradient(objective, student, teacher, [sampled(student, PROMPT, y, reward(y))], advantage)
        total = total + probability * one
    return total


def test_rlsd_at_0_expects_the_policy_gradient_and_above_0_another_vector() -> None:
    """RLSD reinforces by a token's share, so for l > 0 it is no gradient of the expected reward; signs agree."""
    student, teacher = policy(0), policy(1)
    exact = exact_gradient(student)
    at_0, above = (
        expected_gradient(equation_5(alpha=0.0, gate="rlsd", reweighting=share), student, teacher) for share in (0, 0.5)
    )
    torch.testing.assert_close(at_0, exact, atol=1e-6, rtol=1e-6)
    assert (above - exact).abs().max() > 1e-2
    assert torch.cosine_similarity(above, exact, dim=0) > 0.9


def test_the_sampled_and_the_exact_divergence_differ_under_iw_opd() -> None:
    """A token's own gap is in the total by which its weight is divided: the paper's sampled term is not h_n KL."""
    student, teacher = policy(0), policy(1)
    settings = {"alpha": 1.0, "divergence_reduction": "sequence_sum"}
    plain, weighed = (
        [expected_gradient(equation_5(**settings, **more, estimator=e), student, teacher) for e in ("exact", "sampled")]
        for more in ({}, {"gate": "iw_opd"})
    )
    torch.testing.assert_close(*plain, atol=1e-6, rtol=1e-6)
    assert (weighed[0] - weighed[1]).abs().max() > 1e-3
