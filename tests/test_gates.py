"""Gates in the loss: against a slow loop written from the papers' formulas, and in a world that can be counted out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_objective import BUDGET, END, PROMPT, equation_5, log_likelihood, policy, reward, trajectory
from torch import Tensor

from rlgkd.agents.advantages import Credit
from rlgkd.agents.gating import gated
from rlgkd.agents.probing import TeacherAnswers
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import accumulate_gradient
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops import gate
from rlgkd.types import Item, Score, Source, Trajectory


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
    item = dataclasses.replace(t.item, key=str(list(prompt)))
    return dataclasses.replace(t, item=item, logp_T=logp_T, entropy_T=entropy_T, score=Score(reward=earned))


class Answers(TeacherAnswers):
    """What the teacher's own answers have earned, as if it had been asked."""

    EARNED: ClassVar = {"[1]": 1.0, "[2, 3, 1]": 1 / 3, "[3]": 2 / 3}

    def __init__(self) -> None:
        pass

    def rewards(self, items: Sequence[Item]) -> list[float]:
        return [self.EARNED[item.key] for item in items]


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
    credit, _ = gated(
        Credit(advantages_BL, valid_B), rollout, objective, student, teacher, group_size=2, answers=Answers()
    )
    student.module.zero_grad()
    accumulate_gradient(student, teacher, objective, rollout, credit)
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@dataclasses.dataclass
class Known:
    """What is known of one text, and of all, as numbers."""

    advantage: float
    outcome: int
    gaps: list[float]
    logp: list[float]
    entropies: list[float]
    teacher_entropies: list[float]
    divergences: list[float]
    prompt: tuple[int, ...]
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


def slow_srpo(text: Known) -> tuple[list[float], list[float]]:
    def wrong(one: Known) -> bool:
        siblings = [other for other in one.all_texts if other.prompt == one.prompt and other is not one]
        return one.outcome < 0 and any(other.outcome > 0 for other in siblings)

    sure = [math.exp(-0.8 * h) for one in text.all_texts if wrong(one) for h in one.teacher_entropies]
    if not wrong(text):
        return [1.0] * len(text.gaps), [0.0] * len(text.gaps)
    return [0.0] * len(text.gaps), [math.exp(-0.8 * h) * len(sure) / sum(sure) for h in text.teacher_entropies]


def all_or_nothing(text: Known, kept: bool) -> tuple[list[float], list[float]]:
    return [1.0] * len(text.gaps), [float(kept)] * len(text.gaps)


def slow_ra_opd(text: Known) -> tuple[list[float], list[float]]:
    return all_or_nothing(text, text.outcome * sum(text.gaps) / len(text.gaps) >= 0)


def slow_rg_opd(text: Known) -> tuple[list[float], list[float]]:
    return all_or_nothing(
        text, (text.outcome > 0 and sum(text.gaps) > 0.3) or (text.outcome <= 0 and sum(text.gaps) < -0.3)
    )


def slow_sg_opd(text: Known) -> tuple[list[float], list[float]]:
    return [1.0] * len(text.gaps), [1.5 if sign(d) == text.outcome else 0.25 for d in text.gaps]


def slow_r2_opd(text: Known) -> tuple[list[float], list[float]]:
    sizes = sorted(abs(d) for d in text.gaps)
    median = sizes[(len(sizes) - 1) // 2]
    gates = [1 / (1 + math.exp(-2 * text.outcome * d / median)) for d in text.gaps]
    scale = sum(sizes) / sum(g * abs(d) for g, d in zip(gates, text.gaps, strict=True))
    return [1.0] * len(gates), [scale * g for g in gates]


def slow_aopd(text: Known) -> tuple[list[float], list[float]]:
    worked = text.advantage > 0
    return [float(worked)] * len(text.gaps), [float(not worked)] * len(text.gaps)


def slow_sdar(text: Known) -> tuple[list[float], list[float]]:
    return [1.0] * len(text.gaps), [1 / (1 + math.exp(-3 * d)) for d in text.gaps]


def slow_tip(text: Known) -> tuple[list[float], list[float]]:
    """The ceil(0.4 N) greatest scores of all texts, N over that many."""
    hs = [h for one in text.all_texts for h in one.entropies]
    ds = [d for one in text.all_texts for d in one.divergences]

    def score(h: float, d: float) -> float:
        h, d = (h - min(hs)) / (max(hs) - min(hs)), (d - min(ds)) / (max(ds) - min(ds))
        return 1 - (1 - h) * (1 - d)

    kept = math.ceil(0.4 * len(hs))
    least = sorted((score(h, d) for h, d in zip(hs, ds, strict=True)), reverse=True)[kept - 1]
    own = [score(h, d) >= least - 1e-12 for h, d in zip(text.entropies, text.divergences, strict=True)]
    return [1.0] * len(own), [len(hs) / kept * is_kept for is_kept in own]


def slow_prefix(text: Known) -> tuple[list[float], list[float]]:
    length = len(text.gaps)
    return [1.0] * length, [float(n < math.ceil(0.5 * length)) for n in range(length)]


def slow_improbable(text: Known) -> tuple[list[float], list[float]]:
    """OPSA's weight, 1/2 (1 + h), at the third of all tokens with the least log-probability."""
    all_logp = sorted(logp for one in text.all_texts for logp in one.logp)
    all_h = [h for one in text.all_texts for h in one.entropies]
    most = all_logp[math.ceil(len(all_logp) / 3) - 1]
    scaled = [(h - min(all_h)) / (max(all_h) - min(all_h)) for h in text.entropies]
    return [1.0] * len(scaled), [(0.5 + 0.5 * h) * (logp <= most) for h, logp in zip(scaled, text.logp, strict=True)]


def slow_tgopd(text: Known) -> tuple[list[float], list[float]]:
    trusted = float(Answers.EARNED[str(list(text.prompt))] >= 0.5)
    return [1 - trusted] * len(text.gaps), [trusted] * len(text.gaps)


SLOW: dict[str, tuple[SlowGate, dict[str, float]]] = {
    "rlsd": (slow_rlsd, {"reweighting": 0.4, "reweighting_clip": 0.3}),
    "srpo": (slow_srpo, {"entropy_decay": 0.8, "needs_sibling": True}),
    "ra_opd": (slow_ra_opd, {}),
    "rg_opd": (slow_rg_opd, {"margin": 0.3}),
    "sg_opd": (slow_sg_opd, {"agree_weight": 1.5, "disagree_weight": 0.25}),
    "r2_opd": (slow_r2_opd, {"alignment": 2.0}),
    "tgopd": (slow_tgopd, {"trusted_from": 0.5}),
    "aopd": (slow_aopd, {}),
    "sdar": (slow_sdar, {"sharpness": 3.0}),
    "iw_opd": (slow_iw_opd, {"prefix_gain": 0.7}),
    "tip": (slow_tip, {"kept_tokens": 0.4}),
    "prefix": (slow_prefix, {"kept_prefix": 0.5}),
    "improbable": (slow_improbable, {"kept_improbable": 1 / 3, "by_entropy": True}),
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
        logp, h_S, h_T = (
            [q_V[v].item() for q_V, v in zip(q_LV, tokens, strict=True)],
            torch.special.entr(q_LV.detach().exp()).sum(1).tolist(),
            torch.special.entr(p_LV.exp()).sum(1).tolist(),
        )
        divergences = (q_LV.exp() * (q_LV - p_LV)).sum(1).tolist()
        prompt = tuple(t.tokens_T[~t.action_mask_T].tolist())
        outcome = 1 if t.score.reward >= 0.5 else -1
        known.append(Known(advantage.item(), outcome, gaps, logp, h_S, h_T, divergences, prompt))
        policy_terms = [-advantage * q_V[v] for q_V, v in zip(q_LV, tokens, strict=True)]
        if objective.estimator == "sampled":
            distilled = [-d * q_V[v] for d, q_V, v in zip(gaps, q_LV, tokens, strict=True)]
        elif objective.estimator == "fixed_negative":
            distilled = [q_V[v] for q_V, v in zip(q_LV, tokens, strict=True)]
        else:
            distilled = list((q_LV.exp() * (q_LV - p_LV)).sum(1))
        terms.append((policy_terms, distilled))
    loss = torch.zeros((), dtype=torch.float64)
    for text in known:
        text.all_texts = known
    for text, (policy_terms, distilled) in zip(known, terms, strict=True):
        for weight_policy, weight_divergence, a, b in zip(*slow(text), policy_terms, distilled, strict=True):
            loss = loss + (1 - objective.alpha) * weight_policy * a + objective.alpha * weight_divergence * b
    student.module.zero_grad()
    (loss / sum(t.length for t in batch)).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        *((name, "sampled") for name in SLOW),
        *((name, "exact") for name in ("rlsd", "srpo", "tip")),
        ("improbable", "fixed_negative"),
    ],
)
def test_the_gradient_with_a_gate_is_that_of_its_papers_formula(name: str, estimator: str) -> None:
    student, teacher = policy(0), policy(1)
    slow, settings = SLOW[name]
    objective = Objective(alpha=0.3, reduction="token_mean", estimator=estimator, gate=name, **settings)
    batch = texts_of(student)
    expected = slow_gradient(objective, student, teacher, batch, slow)
    plain = slow_gradient(objective, student, teacher, batch, lambda text: ([1.0] * len(text.gaps),) * 2)
    teacher = None if estimator == "fixed_negative" else teacher
    assert (expected - plain).abs().max() > 1e-3
    for token_budget in (BUDGET, 8):
        found = gradient(objective, student, teacher, batch, ADVANTAGES, token_budget)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


NEUTRAL = {
    "rlsd": {"reweighting": 0.0},
    "iw_opd": {"prefix_gain": 0.0},
    "sg_opd": {"agree_weight": 1.0},
    "r2_opd": {"alignment": 0.0},
    "tip": {"kept_tokens": 1.0},
    "prefix": {"kept_prefix": 1.0},
    "improbable": {"kept_improbable": 1.0},
}
"""Settings at which a gate does nothing."""


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_gate_changes_no_bit(name: str) -> None:
    student, teacher = policy(0), policy(1)
    batch = texts_of(student)
    for settings in ({"alpha": 0.3}, {"alpha": 0.6, "estimator": "sampled"}, {"alpha": 0.5, "horizon": 0.5}):
        plain = gradient(Objective(**settings, reduction="token_mean"), student, teacher, batch, ADVANTAGES)
        neutral = Objective(**settings, reduction="token_mean", gate=name, **NEUTRAL[name])
        assert torch.equal(gradient(neutral, student, teacher, batch, ADVANTAGES), plain)


def test_every_gate_is_here() -> None:
    assert SLOW.keys() | {"none"} == gate.GATES.keys()


@cache
def weights_of(name: str, **settings: object) -> tuple[list[Tensor], Tensor]:
    """Both weights of a gate for `texts_of` and one more text, whose reward has failed, and the mask."""
    student, teacher = policy(0), policy(1)
    batch = [*texts_of(student), sampled(student, [3], [1, 2], math.nan), sampled(student, [3], [2, END], 1.0)]
    advantages = torch.cat([ADVANTAGES, torch.zeros(2, 1, dtype=torch.float64)])
    rollout = Rollout(trajectories=batch).split(student, BUDGET)
    credit = Credit(advantages, torch.ones(len(batch), dtype=torch.bool))
    objective = Objective(alpha=0.5, gate=name, **settings)
    found, _ = gated(credit, rollout, objective, student, teacher, group_size=2, answers=Answers())
    mask_BL = torch.arange(rollout.longest) < torch.tensor([t.length for t in batch])[:, None]
    ones_BL = torch.ones(mask_BL.shape, dtype=torch.float64)
    return [ones_BL if w is None else w for w in (found.policy_gate_BL, found.divergence_gate_BL)], mask_BL


def test_srpo_distils_a_text_without_a_verdict_as_it_is_and_takes_any_entropy() -> None:
    (_, divergence_BL), mask_BL = weights_of("srpo")
    assert torch.equal(divergence_BL[6], torch.ones_like(divergence_BL[6]))
    (_, steep_BL), _ = weights_of("srpo", entropy_decay=1e6)
    wrong_BL = mask_BL & torch.tensor([0, 1, 0, 1, 0, 1, 0, 0], dtype=torch.bool)[:, None]
    assert steep_BL[wrong_BL].mean().item() == pytest.approx(1.0)
    assert steep_BL[wrong_BL].max().item() == pytest.approx(int(wrong_BL.sum()))  # the surest token alone


@pytest.mark.parametrize("name", ["ra_opd", "rg_opd", "sg_opd", "r2_opd"])
def test_a_text_whose_reward_failed_is_distilled_as_it_is(name: str) -> None:
    (policy_BL, divergence_BL), _ = weights_of(name)
    torch.testing.assert_close(divergence_BL[6], torch.ones_like(divergence_BL[6]))
    assert torch.equal(policy_BL, torch.ones_like(policy_BL))
    assert not torch.equal(divergence_BL, torch.ones_like(divergence_BL))


def test_the_means_that_are_kept_are_kept() -> None:
    for name in gate.GATES:
        (_, divergence_BL), mask_BL = weights_of(name)
        mean = divergence_BL[mask_BL].mean().item()
        if gate.keeps_mean(name) in ("each action", "the batch"):
            assert mean == pytest.approx(1.0)
        elif "divergence" in gate.terms(name) and name != "r2_opd":  # of which mass alone is kept
            assert abs(mean - 1.0) > 1e-2, name


def test_a_gate_weighs_the_terms_that_it_says() -> None:
    for name in gate.GATES:
        weights, _ = weights_of(name)
        changed = {term for term, w in zip(("policy", "divergence"), weights, strict=True) if not (w == 1).all()}
        assert changed == {*gate.terms(name)}, name


def test_opdvr_is_sg_opd_without_what_disagrees() -> None:
    (_, divergence_BL), mask_BL = weights_of("sg_opd", agree_weight=1.0, disagree_weight=0.0)
    assert {*divergence_BL[mask_BL].tolist()} == {0.0, 1.0}


def test_where_all_texts_are_right_srpo_is_grpo_alone_and_where_all_are_wrong_distillation() -> None:
    student, teacher = policy(0), policy(1)
    settings = {"alpha": 0.5, "reduction": "token_mean"}
    for earned, zero in ((1.0, "divergence_reduction"), (0.0, "policy_reduction")):
        batch = [dataclasses.replace(t, score=Score(reward=earned)) for t in texts_of(student)]
        routed = gradient(Objective(**settings, gate="srpo", entropy_decay=0.0), student, teacher, batch, ADVANTAGES)
        alpha = 0.0 if zero == "divergence_reduction" else 1.0
        alone = gradient(Objective(alpha=alpha, reduction="token_mean"), student, teacher, batch, ADVANTAGES)
        torch.testing.assert_close(routed, 0.5 * alone, atol=1e-12, rtol=1e-9)


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
            atol=1e-9,
            rtol=1e-6,
        )
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


# An enumerable world: the prompt A, four tokens, at most two of them.
WORLD = [[END], *([first, second] for first in (1, 2, 3) for second in range(4))]


def exact_gradient(student: LanguageModel) -> Tensor:
    """Of -E[r], by autograd through the probabilities of all texts."""
    student.module.zero_grad()
    (-sum(log_likelihood(student, y).exp() * reward(y) for y in WORLD)).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


def expected_gradient(objective: Objective, student: LanguageModel, teacher: LanguageModel | None) -> Tensor:
    """sum_y p(y) times the gradient of the batch [y], whose advantage is its reward."""
    total = 0.0
    for y in WORLD:
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


GAPS: dict[str, tuple[dict[str, float], Callable[[Tensor, Tensor], Tensor]]] = {
    "log": ({}, lambda log_p, log_q: log_p - log_q),
    "clip": ({"gap_bound": 0.4}, lambda log_p, log_q: (log_p - log_q).clamp(-0.4, 0.4)),
    "power": ({"gap_exponent": 0.5}, lambda log_p, log_q: 2 * ((0.5 * log_p).exp() - (0.5 * log_q).exp())),
    "sigmoid": ({"gap_sharpness": 3.0}, lambda log_p, log_q: 1 / (1 + (3 * (log_q - log_p)).exp())),
}


def exact_gap_gradient(
    student: LanguageModel, teacher: LanguageModel, gap: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Of -sum_v p_S(v) gap(v) at every prefix, gap held constant, by how often the student gets there."""
    loss = torch.zeros((), dtype=torch.float64)
    for y in WORLD:
        t = trajectory(PROMPT, y)
        q_LV, p_LV = log_probabilities(student, t), log_probabilities(teacher, t).detach()
        loss = loss - log_likelihood(student, y).exp().detach() * (q_LV.exp() * gap(p_LV, q_LV.detach())).sum()
    student.module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


def gradient_per_token(loss: torch.Tensor, student: LanguageModel, batch: Sequence[Trajectory]) -> torch.Tensor:
    """The gradient of a sum over all tokens of the texts, for a mean over them."""
    student.module.zero_grad()
    (loss / sum(t.length for t in batch)).backward()
    return torch.cat([p.grad.flatten() for p in student.module.parameters()])


@pytest.mark.parametrize("name", ["clip", "power", "sigmoid"])
def test_a_gap_has_the_expected_gradient_that_its_sum_over_the_vocabulary_has(name: str) -> None:
    """PowerOPD's, SDAR's and clipped on-policy distillation, sampled, with the mean subtracted or not."""
    student, teacher = policy(0), policy(1)
    settings, gap = GAPS[name]
    exact = exact_gap_gradient(student, teacher, gap)
    assert (exact - exact_gap_gradient(student, teacher, GAPS["log"][1])).abs().max() > 1e-2
    for estimator in ("sampled", "sampled_centred"):
        objective = equation_5(
            alpha=1.0, divergence_reduction="sequence_sum", estimator=estimator, gap=name, **settings
        )
        found = expected_gradient(objective, student, teacher)
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)


def test_sdars_own_loss_has_the_gradient_of_the_gap_sigmoid() -> None:
    """sg(sigmoid(b d)) (log p_T - log p_S) of the written token, as the paper's code has it."""
    student, teacher = policy(0), policy(1)
    batch = texts_of(student)
    loss = torch.zeros((), dtype=torch.float64)
    for t in batch:
        tokens_L1 = torch.from_numpy(t.tokens_T[t.action_mask_T])[:, None]
        q_L, p_L = (log_probabilities(lm, t).gather(1, tokens_L1)[:, 0] for lm in (student, teacher))
        gap_L = p_L.detach() - q_L
        loss = loss + ((5.0 * gap_L).sigmoid().detach() * gap_L).sum()
    own = gradient_per_token(loss, student, batch)
    objective = Objective(alpha=1.0, reduction="token_mean", estimator="sampled", gap="sigmoid")
    found = gradient(objective, student, teacher, batch, torch.zeros_like(ADVANTAGES))
    torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-5)


def test_the_asymmetric_estimator_is_sampled_where_the_teacher_agrees_and_else_the_divergence() -> None:
    """AOPD: with G_n = 1 where d_n <= 0, sum_n G_n KL(p_T || p_S) - (1 - G_n) d_n log p_S(y_n)."""
    student, teacher = policy(0), policy(1)
    batch = texts_of(student)
    loss = torch.zeros((), dtype=torch.float64)
    for t in batch:
        q_LV, p_LV = log_probabilities(student, t), log_probabilities(teacher, t).detach()
        for q_V, p_V, v in zip(q_LV, p_LV, t.tokens_T[t.action_mask_T].tolist(), strict=True):
            d = (p_V[v] - q_V[v]).item()
            loss = loss + ((p_V.exp() * (p_V - q_V)).sum() if d <= 0 else -d * q_V[v])
    own = gradient_per_token(loss, student, batch)
    objective = Objective(alpha=1.0, reduction="token_mean", estimator="asymmetric", divergence="forward_kl")
    found = gradient(objective, student, teacher, batch, torch.zeros_like(ADVANTAGES))
    torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-5)


def test_a_fixed_negative_advantage_teaches_nothing_but_by_the_choice_of_tokens() -> None:
    student = policy(0)
    settings = {"alpha": 1.0, "divergence_reduction": "sequence_sum", "estimator": "fixed_negative"}
    chosen, everywhere = (
        expected_gradient(equation_5(**settings, gate="improbable", kept_improbable=share), student, None)
        for share in (0.3, 1.0)
    )
    assert everywhere.abs().max() < 1e-6 < 1e-2 < chosen.abs().max()
