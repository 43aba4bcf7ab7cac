"""The policy-gradient loss and the entropy."""

import math
import pickle

import pytest
import torch

from rlgkd.errors import SettingError
from rlgkd.ops import policy_loss as L


def test_the_gradient_of_reinforce_over_all_actions_is_minus_that_of_the_expected_reward() -> None:
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    logp = logits.log_softmax(-1)
    (expected,) = torch.autograd.grad((logp.exp() * reward).sum(), logits, retain_graph=True)
    (got,) = torch.autograd.grad((logp.exp().detach() * L.reinforce(logp, reward)).sum(), logits)
    torch.testing.assert_close(got, -expected)


def test_a_constant_added_to_the_advantage_leaves_the_expected_gradient_unchanged() -> None:
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    logp = logits.log_softmax(-1)
    slopes = [
        torch.autograd.grad((logp.exp().detach() * L.reinforce(logp, reward + c)).sum(), logits, retain_graph=True)[0]
        for c in (0.0, 5.0)
    ]
    torch.testing.assert_close(*slopes)


def test_no_gradient_flows_into_the_advantage() -> None:
    logp, advantage = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    L.reinforce(logp, advantage).sum().backward()
    assert advantage.grad is None and logp.grad.tolist() == [-1.0] * 3


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(SettingError, match=r"advantage_N.shape: \(3, 1\)"):
        L.reinforce(torch.zeros(3), torch.zeros(3, 1))


def test_at_a_ratio_of_one_every_loss_has_the_gradient_of_reinforce() -> None:
    logp = torch.tensor([-0.5, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(L.reinforce(logp, advantage).sum(), logp)
    for loss in (L.clipped, L.clipped_weight):
        (got,) = torch.autograd.grad(loss(logp, logp.detach(), advantage).sum(), logp)
        torch.testing.assert_close(got, expected)


def test_the_importance_ratio_makes_the_gradient_of_old_samples_unbiased() -> None:
    """Enumerated: sum_v old(v) grad loss(v) = -grad E_pi[r], with bounds so wide that nothing is clipped."""
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    reward = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    logp = logits.log_softmax(-1)
    (expected,) = torch.autograd.grad((logp.exp() * reward).sum(), logits, retain_graph=True)
    wide = (
        L.clipped(logp, old.log(), reward, clip_low=1.0, clip_high=100.0),
        L.clipped_weight(logp, old.log(), reward, clip_high=100.0),
    )
    for loss in wide:
        (got,) = torch.autograd.grad((old * loss).sum(), logits, retain_graph=True)
        torch.testing.assert_close(got, -expected)


def test_clipping_stops_the_step_that_goes_further_and_lets_the_way_back_open() -> None:
    rho = torch.tensor([0.7, 0.7, 1.5, 1.5], dtype=torch.float64)
    logp = rho.log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    L.clipped(logp, torch.zeros_like(logp), advantage, clip_low=0.2, clip_high=0.28).sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([-0.7, 0.0, 0.0, 1.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((torch.zeros(3), torch.zeros(2), torch.zeros(3)), {}, r"old_logp_N.shape: \(2,\)"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3, 1)), {}, r"advantage_N.shape: \(3, 1\)"),
        ((torch.zeros(1), torch.zeros(1), torch.zeros(1)), {"clip_low": 1.5}, "clip_low: 1.5"),
        ((torch.zeros(1), torch.zeros(1), torch.zeros(1)), {"clip_high": -0.1}, "clip_high: -0.1"),
    ],
)
def test_clipping_refuses_what_it_cannot_do(arguments, settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        L.clipped(*arguments, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "same"),
    [
        ("reinforce", {}, lambda logp, old, advantage: L.reinforce(logp, advantage)),
        ("clipped", {"clip_low": 0.1}, lambda *given: L.clipped(*given, clip_low=0.1)),
        ("clipped_weight", {}, L.clipped_weight),
    ],
)
def test_a_policy_loss_by_its_name_takes_three_arguments_and_can_be_pickled(name, settings, same) -> None:
    given = (torch.tensor([-0.5, -2.0]), torch.tensor([-0.4, -3.0]), torch.tensor([1.0, -2.0]))
    loss = pickle.loads(pickle.dumps(L.get(name, **settings)))
    assert torch.equal(loss(*given), same(*given))


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("clip", {}, "policy_loss"),
        ("reinforce", {"clip_high": 0.2}, "clip_high"),
        ("clipped", {"clip_low": 2.0}, "clip_low"),
        ("clipped_weight", {"clip_low": 0.2}, "clip_low"),
    ],
)
def test_a_policy_loss_refuses_settings_that_are_not_its_own(name, settings, field) -> None:
    with pytest.raises(SettingError) as error:
        L.get(name, **settings)
    assert error.value.field == field


def test_entropy_of_known_distributions() -> None:
    assert L.entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    value = L.entropy(p.log())
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(-sum(x * math.log(x) for x in p.tolist()))


def test_the_gradient_of_the_entropy_is_that_of_finite_differences() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(L.entropy, logits)


def test_suppressed_tokens_add_nothing_to_the_entropy_or_its_gradient() -> None:
    logits = torch.tensor([0.3, -math.inf, 1.0, -math.inf], requires_grad=True)
    value = L.entropy(logits)
    value.backward()
    assert value.item() == pytest.approx(L.entropy(torch.tensor([0.3, 1.0])).item())
    assert logits.grad.isfinite().all() and logits.grad[1] == logits.grad[3] == 0.0


def test_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    value = L.entropy(logits)
    value.sum().backward()
    assert value.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    assert torch.equal(value, L.entropy(logits.float()))


def test_nan_logits_give_a_nan_entropy_and_logits_without_a_vocabulary_are_refused() -> None:
    assert L.entropy(torch.tensor([0.0, math.nan])).isnan()
    for logits in (torch.zeros(()), torch.zeros(2, 0), torch.zeros(2, dtype=torch.long)):
        with pytest.raises(SettingError, match="logits: "):
            L.entropy(logits)


def test_the_value_loss_is_half_the_square_and_clipping_only_ever_raises_it() -> None:
    generator = torch.Generator().manual_seed(0)
    value, old, target = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    free, held = L.value_loss(value, old, target), L.value_loss(value, old, target, clip=0.3)
    for n in range(50):
        v, o, r = value[n].item(), old[n].item(), target[n].item()
        assert free[n].item() == pytest.approx((v - r) ** 2 / 2)
        assert held[n].item() == pytest.approx(max((v - r) ** 2, (min(max(v, o - 0.3), o + 0.3) - r) ** 2) / 2)
    assert (held >= free).all() and (held > free).any()
    with pytest.raises(SettingError, match="clip"):
        L.value_loss(value, old, target, clip=-0.1)
    with pytest.raises(SettingError, match="shape"):
        L.value_loss(value, old, target[:1])


def test_log_probability_and_entropy_of_one_softmax_are_the_two() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    logits[1, 2] = -math.inf
    action = torch.tensor([0, 3, 5, 5])
    weights = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    found = []
    for both in (L.log_probability_and_entropy, lambda x, a: (L.log_probability(x, a), L.entropy(x))):
        leaf = logits.clone().requires_grad_()
        logp, entropy = both(leaf, action)
        (weights[0] * logp + weights[1] * entropy).sum().backward()
        found.append((logp, entropy, leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_log_probability_and_entropy_have_the_gradient_of_finite_differences() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    action = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda x: L.log_probability_and_entropy(x, action), logits)
    assert torch.autograd.gradcheck(lambda x: L.log_probability(x, action), logits)
    assert not L.log_probability_and_entropy(logits, action, entropy_gradient=False)[1].requires_grad
    with torch.no_grad():
        assert not any(value.requires_grad for value in L.log_probability_and_entropy(logits, action))
        without = L.log_probability(logits, action)
    torch.testing.assert_close(without, L.log_probability(logits, action).detach())


def test_the_log_probability_of_a_suppressed_token_is_minus_infinity_and_of_nan_nan() -> None:
    logits = torch.tensor([[0.3, -math.inf], [0.3, math.nan]])
    logp, entropy = L.log_probability_and_entropy(logits, torch.tensor([1, 0]))
    assert logp[0] == -math.inf and entropy[0] == 0.0
    assert logp[1].isnan() and entropy[1].isnan()
