"""No function gives NaN for finite input, and float32 agrees with a slow NumPy reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from rlgkd.objective import Actions, Objective
from rlgkd.ops import behaviour_policy, divergence, policy_loss, returns, sampling

huge = st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, -1e4, 1e4, -1e30, 1e30, 1e-30]))
rows = hnp.arrays(np.float32, (3, 5), elements=huge).map(torch.from_numpy)
quick = settings(max_examples=60, deadline=None, derandomize=True)

POINTWISE = {
    **{name: divergence.get(name, **({"beta": 0.3} if name == "jsd" else {})) for name in divergence.DIVERGENCES},
    **{name: behaviour_policy.get(name) for name in behaviour_policy.BEHAVIOURS},
}


@pytest.mark.parametrize("name", POINTWISE)
@quick
@given(teacher=rows, student=rows)
def test_two_sets_of_logits(name, teacher, student):
    student = student.clone().requires_grad_()
    value = POINTWISE[name](teacher, student)
    assert not value.isnan().any()
    if value.isfinite().all() and name in divergence.DIVERGENCES:
        value.sum().backward()
        assert not student.grad.isnan().any()


@quick
@given(logits=rows)
def test_one_set_of_logits(logits):
    assert not policy_loss.entropy(logits).isnan().any()
    _, logp_B, entropy_B = sampling.sample(logits, torch.full((3,), 0.5, dtype=torch.float64))
    assert not logp_B.isnan().any() and not entropy_B.isnan().any()


@quick
@given(logp=rows, old=rows, advantage=rows)
def test_policy_and_value_losses(logp, old, advantage):
    for loss in (policy_loss.clipped, policy_loss.clipped_weight):
        assert not loss(-logp.abs(), -old.abs(), advantage).isnan().any()
    assert not policy_loss.reinforce(-logp.abs(), advantage).isnan().any()
    assert not policy_loss.value_loss(logp, old, advantage, clip=0.2).isnan().any()


@quick
@given(reward=rows, value=rows)
def test_advantages_and_returns(reward, value):
    mask = torch.ones_like(reward, dtype=torch.bool)
    for advantage in returns.ADVANTAGES.values():
        assert not advantage(reward, mask).isnan().any()
    assert not returns.discounted_returns(reward, 0.9, mask).isnan().any()
    assert not returns.gae(reward, value, 0.9, mask).isnan().any()


# Eq. 5, token by token in NumPy and float64.

moderate = hnp.arrays(np.float32, (6, 5), elements=st.floats(-8, 8, width=32))


def log_softmax(x: np.ndarray) -> np.ndarray:
    top = x.max()
    return x - top - math.log(math.fsum(math.exp(v - top) for v in x))


def slow_loss(
    objective: Objective, student: np.ndarray, teacher: np.ndarray, rest: dict[str, np.ndarray]
) -> tuple[float, float]:
    """The loss, and the sum of its terms' sizes."""
    terms = []
    for n in range(len(student)):
        log_q, log_p = log_softmax(student[n].astype(np.float64)), log_softmax(teacher[n].astype(np.float64))
        action, old, advantage, future = (float(rest[name][n]) for name in ("actions", "old", "advantages", "futures"))
        logp, log_ratio = log_q[int(action)], log_q[int(action)] - log_p[int(action)]

        def surrogate(a: float, logp: float = logp, old: float = old) -> float:
            rho = math.exp(logp - old)
            if objective.policy_loss.name == "reinforce":
                return -a * logp
            if objective.policy_loss.name == "clipped":
                return -min(rho * a, min(max(rho, 0.8), 1.2) * a)
            return -min(rho, 5.0) * a * logp

        exact = math.fsum(math.exp(q) * (q - p) for q, p in zip(log_q, log_p, strict=True))
        distilled = {
            "exact": exact,
            "sampled": surrogate(-log_ratio),
            "sampled_centred": surrogate(exact - log_ratio),
            "k2": log_ratio**2 / 2,
        }[objective.estimator]
        entropy = -math.fsum(math.exp(q) * q for q in log_q)
        w, v = float(rest["policy_weights"][n]), float(rest["divergence_weights"][n])
        g, h = float(rest["policy_gates"][n]), float(rest["divergence_gates"][n])
        terms += [(1 - objective.alpha) * w * g * surrogate(advantage), -objective.entropy_bonus * w * entropy]
        terms += [objective.alpha * v * h * distilled, objective.alpha * v * surrogate(-future)]
    return math.fsum(terms), math.fsum(map(abs, terms))


@pytest.mark.parametrize("estimator", ["exact", "sampled", "sampled_centred", "k2"])
@pytest.mark.parametrize("loss", ["reinforce", "clipped", "clipped_weight"])
@quick
@given(student=moderate, teacher=moderate, seed=st.integers(0, 10_000))
def test_the_loss_in_float32_is_that_of_a_slow_reference_in_float64(estimator, loss, student, teacher, seed):
    rng = np.random.default_rng(seed)
    rest = {
        "actions": rng.integers(0, 5, 6),
        "old": -rng.random(6),
        "advantages": rng.normal(size=6),
        "policy_weights": rng.random(6),
        "divergence_weights": rng.random(6),
        "futures": rng.random(6),
        "policy_gates": rng.random(6),
        "divergence_gates": rng.random(6),
    }
    objective = Objective(alpha=0.3, estimator=estimator, policy_loss=loss, horizon=0.5, entropy_bonus=0.1)
    tensors: list[Tensor] = [
        torch.from_numpy(values if values.dtype == np.int64 else values.astype(np.float32)) for values in rest.values()
    ]
    fields = (
        "token_N",
        "old_logp_N",
        "advantage_N",
        "policy_weight_N",
        "divergence_weight_N",
        "future_N",
        "policy_gate_N",
        "divergence_gate_N",
    )
    actions = Actions(**dict(zip(fields, tensors, strict=True)))
    given_loss, _ = objective.loss(torch.from_numpy(student), torch.from_numpy(teacher), actions)
    expected, size = slow_loss(objective, student, teacher, {k: t.numpy() for k, t in zip(rest, tensors, strict=True)})
    assert given_loss.item() == pytest.approx(expected, abs=1e-5 * max(1.0, size))
