"""Divergences: golden values, limits and bounds, a slow reference, the gradients, and the variants that must fail."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops import divergence as D

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
INF = float("inf")

ALL = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("total_variation", {}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.5}),
    ("jsd", {"beta": 0.9}),
    ("jsd", {"beta": 0.9, "normalized": True}),
    ("jsd", {"beta": 0.0, "normalized": True}),
    ("jsd", {"beta": 1.0, "normalized": True}),
    ("skew_forward_kl", {"skew": 0.1}),
    ("skew_forward_kl", {"skew": 0.0}),
    ("skew_reverse_kl", {"skew": 0.1}),
    ("skew_reverse_kl", {"skew": 0.6}),
    ("jeffreys", {}),
    ("adaptive_kl", {}),
    ("adaptive_kl", {"head": 0.9}),
]
every_divergence = pytest.mark.parametrize(("name", "given_settings"), ALL, ids=[f"{n}{s or ''}" for n, s in ALL])
SMOOTH = [(name, given_settings) for name, given_settings in ALL if name != "adaptive_kl"]
"""Those without a weight that is held constant and jumps where a token enters the head."""

logits_pairs = st.integers(1, 9).flatmap(
    lambda v: hnp.arrays(np.float64, (2, v), elements=st.floats(-30, 30, allow_subnormal=False))
)
betas = st.floats(0.001, 0.999)


def slow(
    name: str,
    teacher: np.ndarray,
    student: np.ndarray,
    beta: float = 0.5,
    normalized: bool = False,
    skew: float = 0.1,
    head: float = 0.5,
) -> float:
    """One position, float64, token by token."""

    def probabilities(logits: np.ndarray) -> list[float]:
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        return [w / math.fsum(weights) for w in weights]

    def kl(a: list[float], b: list[float]) -> float:
        if any(x > 0 and y == 0 for x, y in zip(a, b, strict=True)):
            return INF
        return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    p, q = probabilities(teacher), probabilities(student)
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return kl(p, q)
    if name == "reverse_kl" or (name == "jsd" and beta == 1):
        return kl(q, p)
    if name == "total_variation":
        return 0.5 * math.fsum(abs(x - y) for x, y in zip(p, q, strict=True))
    if name == "skew_forward_kl":
        return kl(p, [skew * x + (1 - skew) * y for x, y in zip(p, q, strict=True)])
    if name == "skew_reverse_kl":
        return kl(q, [(1 - skew) * x + skew * y for x, y in zip(p, q, strict=True)])
    if name == "jeffreys":
        return kl(p, q) + kl(q, p)
    if name == "adaptive_kl":
        mass, gap_of_head = 0.0, 0.0
        for x, y in sorted(zip(p, q, strict=True), key=lambda pair: -pair[0]):
            gap_of_head += abs(x - y) if mass < head else 0.0
            mass += x
        gap = math.fsum(abs(x - y) for x, y in zip(p, q, strict=True))
        share = gap_of_head / gap if gap > 0 else 0.5
        return share * kl(p, q) + (1 - share) * kl(q, p)
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    raw = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return raw / (beta * (1 - beta)) if normalized else raw


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return teacher, student


def gradient(divergence: D.Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(divergence(teacher, student).sum(), student)
    return result


# Values


@pytest.mark.parametrize(
    ("name", "given_settings", "expected"),
    [
        ("forward_kl", {}, 0.634897),
        ("reverse_kl", {}, 0.675806),
        ("total_variation", {}, 0.5),
        ("jsd", {"beta": 0.1}, 0.0558908),
        ("jsd", {"beta": 0.5}, 0.1513581),
        ("jsd", {"beta": 0.9}, 0.0583987),
        ("skew_forward_kl", {"skew": 0.1}, 0.4938153),
        ("skew_reverse_kl", {"skew": 0.1}, 0.5077543),
        ("jeffreys", {}, 0.634897 + 0.675806),
        ("adaptive_kl", {}, 0.5 * (0.634897 + 0.675806)),
    ],
)
def test_golden_values_worked_out_by_hand(name: str, given_settings: dict[str, float], expected: float) -> None:
    """docs/mathematics.md, "Values by hand"; Jeffreys and the adaptive KL are sums of the first two."""
    value = D.get(name, **given_settings)(P.log(), Q.log())
    assert value.item() == pytest.approx(expected, rel=1e-5)


@every_divergence
def test_equals_the_slow_reference_in_float32(name: str, given_settings: dict[str, float]) -> None:
    teacher, student = random_logits(4, 5, 37)
    value = D.get(name, **given_settings)(teacher.float(), student.float())
    assert value.dtype == torch.float32 and value.shape == (4, 5)
    expected = [
        slow(name, t, s, **given_settings)
        for t, s in zip(teacher.flatten(0, 1).numpy(), student.flatten(0, 1).numpy(), strict=True)
    ]
    torch.testing.assert_close(value.flatten().double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


@every_divergence
def test_float64_stays_float64_and_is_exact(name: str, given_settings: dict[str, float]) -> None:
    teacher, student = random_logits(37)
    value = D.get(name, **given_settings)(teacher, student)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow(name, teacher.numpy(), student.numpy(), **given_settings), rel=1e-12)


@every_divergence
def test_bfloat16_logits_are_computed_in_float32(name: str, given_settings: dict[str, float]) -> None:
    divergence = D.get(name, **given_settings)
    teacher, student = (x.bfloat16() for x in random_logits(6, 50))
    value = divergence(teacher, student)
    assert value.dtype == torch.float32
    assert torch.equal(value, divergence(teacher.float(), student.float()))
    slope = gradient(divergence, teacher, student)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope, gradient(divergence, teacher.float(), student.float()).bfloat16())


def test_a_bfloat16_teacher_may_judge_a_float32_student() -> None:
    teacher, student = random_logits(6, 50)
    value = D.forward_kl(teacher.bfloat16(), student.float())
    torch.testing.assert_close(value, D.forward_kl(teacher.bfloat16().float(), student.float()))


@given(logits_pairs, betas)
@settings(deadline=None)
def test_jsd_lies_between_zero_and_the_entropy_of_beta(logits: np.ndarray, beta: float) -> None:
    teacher, student = torch.from_numpy(logits)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-12 <= D.jsd(teacher, student, beta=beta).item() <= bound + 1e-12


@given(logits_pairs, betas)
@settings(deadline=None)
def test_jsd_mirrored_in_beta_swaps_its_arguments(logits: np.ndarray, beta: float) -> None:
    teacher, student = torch.from_numpy(logits)
    mirrored = D.jsd(student, teacher, beta=1 - beta)
    torch.testing.assert_close(D.jsd(teacher, student, beta=beta), mirrored, rtol=1e-10, atol=1e-13)


@given(logits_pairs)
@settings(deadline=None)
def test_reverse_kl_is_forward_kl_with_its_arguments_swapped(logits: np.ndarray) -> None:
    teacher, student = torch.from_numpy(logits)
    torch.testing.assert_close(D.reverse_kl(teacher, student), D.forward_kl(student, teacher), rtol=1e-10, atol=1e-13)


@given(logits_pairs)
@settings(deadline=None)
def test_total_variation_is_bounded_by_one_and_by_pinsker(logits: np.ndarray) -> None:
    teacher, student = torch.from_numpy(logits)
    tv = D.total_variation(teacher, student).item()
    assert 0 <= tv <= 1 + 1e-12
    assert tv <= math.sqrt(max(0.0, D.forward_kl(teacher, student).item()) / 2) + 1e-7


@given(hnp.arrays(np.float32, (2, 7), elements=st.floats(-20, 20, width=32)), st.floats(-4, 4, width=32))
@settings(deadline=None)
def test_a_constant_added_to_the_logits_changes_nothing(logits: np.ndarray, shift: float) -> None:
    teacher, student = torch.from_numpy(logits)
    for name, given_settings in SMOOTH:
        divergence = D.get(name, **given_settings)
        moved = divergence(teacher + shift, student)
        torch.testing.assert_close(moved, divergence(teacher, student), rtol=1e-4, atol=1e-4)


def test_jsd_over_beta_tends_to_forward_kl_and_over_one_minus_beta_to_reverse_kl() -> None:
    teacher, student = P.log(), Q.log()
    forward, reverse = D.forward_kl(teacher, student).item(), D.reverse_kl(teacher, student).item()
    assert D.jsd(teacher, student, beta=1e-7).item() / 1e-7 == pytest.approx(forward, rel=1e-5)
    assert D.jsd(teacher, student, beta=1 - 1e-7).item() / 1e-7 == pytest.approx(reverse, rel=1e-5)


@pytest.mark.parametrize("small", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_normalized_jsd_joins_both_kls_without_a_jump_in_float32(small: float) -> None:
    teacher, student = random_logits(20, 30, scale=1.0)
    t, s = teacher.float(), student.float()
    for beta in (small, 1 - small):
        exact = D.jsd(teacher, student, beta=beta, normalized=True)
        torch.testing.assert_close(D.jsd(t, s, beta=beta, normalized=True).double(), exact, rtol=1e-5, atol=2e-6)
    near, far = D.jsd(t, s, beta=small, normalized=True), D.jsd(t, s, beta=1 - small, normalized=True)
    torch.testing.assert_close(near, D.forward_kl(t, s), rtol=20 * small + 1e-5, atol=1e-5)
    torch.testing.assert_close(far, D.reverse_kl(t, s), rtol=20 * small + 1e-5, atol=1e-5)
    assert torch.equal(D.jsd(t, s, beta=0.0, normalized=True), D.forward_kl(t, s))
    assert torch.equal(D.jsd(t, s, beta=1.0, normalized=True), D.reverse_kl(t, s))


def test_normalized_jsd_is_the_raw_value_over_beta_times_one_minus_beta() -> None:
    teacher, student = random_logits(5, 9)
    for beta in (0.1, 0.5, 0.9):
        raw = D.jsd(teacher, student, beta=beta)
        torch.testing.assert_close(D.jsd(teacher, student, beta=beta, normalized=True), raw / (beta * (1 - beta)))


# Gradients


@pytest.mark.parametrize(("name", "given_settings"), SMOOTH)
def test_the_gradient_is_that_of_finite_differences(name: str, given_settings: dict[str, float]) -> None:
    teacher, student = random_logits(3, 6, scale=1.0)
    divergence = D.get(name, **given_settings)
    assert torch.autograd.gradcheck(lambda s: divergence(teacher, s), student.requires_grad_())


def autograd_value(
    name: str,
    teacher: Tensor,
    student: Tensor,
    beta: float = 0.5,
    normalized: bool = False,
    skew: float = 0.0,
    head: float = 0.5,
) -> Tensor:
    """The definition, left to autograd."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if name == "skew_forward_kl":
        return (p * (log_p - (skew * p + (1 - skew) * q).log())).sum(-1)
    if name == "skew_reverse_kl":
        return (q * (log_q - ((1 - skew) * p + skew * q).log())).sum(-1)
    if name in ("jeffreys", "adaptive_kl"):
        forward, reverse = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
        if name == "jeffreys":
            return forward + reverse
        order = p.argsort(dim=-1, descending=True)
        before = p.gather(-1, order).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        gap = (p - q).abs().detach()
        share = (gap.gather(-1, order) * (before < head)).sum(-1) / gap.sum(-1)
        return share * forward + (1 - share) * reverse
    if name == "forward_kl" or beta == 0:
        return (p * (log_p - log_q)).sum(-1)
    if name == "reverse_kl" or beta == 1:
        return (q * (log_q - log_p)).sum(-1)
    if name == "total_variation":
        return 0.5 * (p - q).abs().sum(-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    raw = beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)
    return raw / (beta * (1 - beta)) if normalized else raw


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_autograd_through_the_definition(
    name: str, given_settings: dict[str, float], dtype: torch.dtype
) -> None:
    teacher, student = (x.to(dtype) for x in random_logits(40, 60))
    slope = gradient(D.get(name, **given_settings), teacher, student)
    expected = gradient(lambda t, s: autograd_value(name, t, s, **given_settings), teacher, student)
    torch.testing.assert_close(slope, expected, **({"rtol": 1e-4, "atol": 3e-6} if dtype == torch.float32 else {}))


@pytest.mark.parametrize(
    ("name", "given_settings", "coefficient"),
    [
        ("forward_kl", {}, lambda p, q: -p / q),
        ("reverse_kl", {}, lambda p, q: -(p / q).log()),
        ("jsd", {"beta": 0.3}, lambda p, q: 0.7 * (q / (0.3 * p + 0.7 * q)).log()),
        ("jsd", {"beta": 0.9}, lambda p, q: 0.1 * (q / (0.9 * p + 0.1 * q)).log()),
        ("total_variation", {}, lambda p, q: 0.5 * (q - p).sign()),
    ],
)
def test_the_gradient_is_the_score_weighted_by_the_coefficient_of_the_f_divergence(
    name: str, given_settings: dict[str, float], coefficient
) -> None:
    """grad D = E_Q[(f(u) - u f'(u)) grad log Q], u = P/Q: docs/mathematics.md, "The gradient of an f-divergence"."""
    teacher, student = random_logits(8)
    student.requires_grad_()
    log_q = student.log_softmax(-1)
    p, q = teacher.softmax(-1), log_q.exp().detach()
    (expected,) = torch.autograd.grad((q * coefficient(p, q) * log_q).sum(), student)
    torch.testing.assert_close(gradient(D.get(name, **given_settings), teacher, student.detach()), expected)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_equal_to_teacher_has_exactly_zero_loss_and_gradient(
    name: str, given_settings: dict[str, float], dtype: torch.dtype
) -> None:
    divergence = D.get(name, **given_settings)
    logits = random_logits(8, 1000)[0].to(dtype)
    assert torch.count_nonzero(divergence(logits, logits.clone())) == 0
    assert torch.count_nonzero(gradient(divergence, logits, logits.clone())) == 0


@every_divergence
def test_a_student_near_the_teacher_is_never_noticeably_negative(name: str, given_settings: dict[str, float]) -> None:
    divergence = D.get(name, **given_settings)
    teacher, noise = (x.float() for x in random_logits(64, 2000))
    for scale in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        for shift in (0.0, 50.0):
            student = teacher + scale * noise + shift
            assert divergence(teacher, student).min().item() > -5e-7


def test_the_value_without_a_gradient_is_the_value_with_one() -> None:
    teacher, student = random_logits(5, 9)
    for name, given_settings in ALL:
        divergence = D.get(name, **given_settings)
        value = divergence(teacher, student)
        assert not value.requires_grad
        assert torch.equal(value, divergence(teacher, student.clone().requires_grad_()).detach())
        with torch.no_grad():
            assert not divergence(teacher, student.clone().requires_grad_()).requires_grad


def test_the_gradient_passes_on_what_comes_from_above() -> None:
    teacher, student = random_logits(5, 9)
    weight = torch.arange(5.0, dtype=torch.float64)
    student.requires_grad_()
    (D.jsd(teacher, student, beta=0.9) * weight).sum().backward()
    expected = gradient(D.get("jsd", beta=0.9), teacher, student.detach()) * weight[:, None]
    torch.testing.assert_close(student.grad, expected)


def test_inputs_are_left_as_they_were() -> None:
    teacher, student = random_logits(5, 9)
    before = teacher.clone(), student.clone()
    for name, given_settings in ALL:
        gradient(D.get(name, **given_settings), teacher, student)
        D.get(name, **given_settings)(teacher, student)
    assert torch.equal(teacher, before[0]) and torch.equal(student, before[1])


def test_the_teacher_is_a_constant_and_there_is_no_second_derivative() -> None:
    teacher, student = random_logits(5, 9)
    teacher.requires_grad_()
    student.requires_grad_()
    (slope,) = torch.autograd.grad(D.forward_kl(teacher, student).sum(), student, create_graph=True)
    assert not slope.requires_grad
    (slope,) = torch.autograd.grad(D.forward_kl(teacher, student).square().sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    D.forward_kl(teacher, student).sum().backward()
    assert teacher.grad is None


def test_only_one_tensor_over_the_vocabulary_is_kept_for_the_backward_pass() -> None:
    teacher, student = random_logits(5, 9)
    student.requires_grad_()
    for name, given_settings in ALL:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            D.get(name, **given_settings)(teacher, student)
        assert kept == [student.numel()]


# Suppressed tokens


@every_divergence
def test_tokens_suppressed_in_both_count_for_nothing(name: str, given_settings: dict[str, float]) -> None:
    teacher, student = random_logits(4, 6)
    divergence = D.get(name, **given_settings)
    holes = torch.full((4, 3), -INF, dtype=torch.float64)
    wide_teacher, wide_student = torch.cat([teacher, holes], -1), torch.cat([student, holes], -1)
    torch.testing.assert_close(divergence(wide_teacher, wide_student), divergence(teacher, student))
    slope = gradient(divergence, wide_teacher, wide_student)
    torch.testing.assert_close(slope[:, :6], gradient(divergence, teacher, student))
    assert torch.count_nonzero(slope[:, 6:]) == 0


@every_divergence
def test_a_suppressed_token_may_be_minus_inf_in_one_and_merely_very_low_in_the_other(
    name: str, given_settings: dict[str, float]
) -> None:
    teacher, student = (x.float() for x in random_logits(4, 6))
    divergence = D.get(name, **given_settings)
    holes, low = torch.full((4, 1), -INF), torch.full((4, 1), torch.finfo(torch.float32).min)
    for t, s in ((holes, low), (low, holes)):
        wide_teacher, wide_student = torch.cat([teacher, t], -1), torch.cat([student, s], -1)
        torch.testing.assert_close(divergence(wide_teacher, wide_student), divergence(teacher, student))
        assert gradient(divergence, wide_teacher, wide_student).isfinite().all()


def test_a_token_that_only_the_teacher_can_produce_costs_the_right_amount() -> None:
    teacher, student = P.log(), torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64).log()
    assert D.forward_kl(teacher, student).item() == INF
    assert gradient(D.forward_kl, teacher, student).isfinite().all()
    assert D.reverse_kl(teacher, student).item() == pytest.approx(0.4 * math.log(4 / 7) + 0.6 * math.log(3))
    assert D.total_variation(teacher, student).item() == pytest.approx(0.4)
    for beta in (0.1, 0.5, 0.9):
        jsd = D.get("jsd", beta=beta)
        assert jsd(teacher, student).item() == pytest.approx(slow("jsd", teacher.numpy(), student.numpy(), beta))
        assert gradient(jsd, teacher, student).isfinite().all()


def test_a_token_that_only_the_student_can_produce_costs_the_right_amount() -> None:
    teacher, student = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64).log(), Q.log()
    assert D.reverse_kl(teacher, student).item() == INF
    assert D.forward_kl(teacher, student).item() == pytest.approx(0.4 * math.log(2) + 0.6 * math.log(2))
    for beta in (0.1, 0.5, 0.9):
        jsd = D.get("jsd", beta=beta)
        assert jsd(teacher, student).item() == pytest.approx(slow("jsd", teacher.numpy(), student.numpy(), beta))
        assert gradient(jsd, teacher, student).isfinite().all()


def test_distributions_without_a_common_token_reach_the_bounds_in_float32() -> None:
    teacher, student = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    for beta in (0.01, 0.3, 0.5, 0.7, 0.99):
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert D.jsd(teacher, student, beta=beta).item() == pytest.approx(bound, rel=1e-5)
        assert D.greatest(D.get("jsd", beta=beta)) == pytest.approx(bound, rel=1e-5)
        assert D.greatest(D.get("skew_forward_kl", skew=beta)) == pytest.approx(-math.log(beta), rel=1e-5)
    assert D.total_variation(teacher, student).item() == 1.0
    assert D.forward_kl(teacher, student).item() == INF and D.reverse_kl(teacher, student).item() == INF


@every_divergence
@pytest.mark.parametrize("side", [0, 1])
def test_nan_among_the_logits_is_not_hidden(name: str, given_settings: dict[str, float], side: int) -> None:
    pair = random_logits(4, 6)
    pair[side][2, 3] = float("nan")
    value = D.get(name, **given_settings)(*pair)
    assert value.isnan().tolist() == [False, False, True, False]


# The variants that must fail


def test_swapped_weights_a_geometric_mixture_and_a_swapped_direction_give_other_values() -> None:
    teacher, student, beta = P.log(), Q.log(), 0.9
    right = D.jsd(teacher, student, beta=beta).item()
    arithmetic = (beta * P + (1 - beta) * Q).log()
    swapped_outside = (1 - beta) * D.forward_kl(teacher, arithmetic) + beta * D.forward_kl(student, arithmetic)
    swapped_throughout = D.jsd(teacher, student, beta=1 - beta)
    swapped_mixture = ((1 - beta) * P + beta * Q).log()
    swapped_inside = beta * D.forward_kl(teacher, swapped_mixture) + (1 - beta) * D.forward_kl(student, swapped_mixture)
    mixed = beta * teacher + (1 - beta) * student
    geometric = beta * D.forward_kl(teacher, mixed) + (1 - beta) * D.forward_kl(student, mixed)
    for wrong in (swapped_outside, swapped_throughout, swapped_inside, geometric):
        assert abs(wrong.item() - right) > 1e-3
    assert abs(D.forward_kl(teacher, student).item() - D.reverse_kl(teacher, student).item()) > 1e-2


def test_forward_kl_covers_both_modes_and_reverse_kl_seeks_one() -> None:
    """A student of one bump, location by descent: the behaviour that gives the two directions their names."""
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    teacher = torch.logaddexp(-((x - 2) ** 2) / 0.1 + math.log(0.6), -((x + 2) ** 2) / 0.1 + math.log(0.4))

    def best_location(divergence: D.Divergence) -> float:
        location = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([location], lr=0.05)
        for _ in range(120):
            optimizer.zero_grad()
            divergence(teacher, -((x - location) ** 2) / 0.5).backward()
            optimizer.step()
        return location.item()

    assert best_location(D.forward_kl) == pytest.approx(0.4, abs=0.05)  # the mean, where the teacher never is
    assert best_location(D.reverse_kl) == pytest.approx(2.0, abs=0.05)


# By name


def test_every_name_gives_its_function_and_survives_pickling() -> None:
    assert D.names() == tuple(sorted({name for name, _ in ALL}))
    assert D.get("forward_kl")(P.log(), Q.log()) == D.forward_kl(P.log(), Q.log())
    jsd = pickle.loads(pickle.dumps(D.get("jsd", beta=0.1, normalized=True)))
    assert jsd(P.log(), Q.log()) == D.jsd(P.log(), Q.log(), beta=0.1, normalized=True)


@pytest.mark.parametrize(
    ("name", "given_settings", "message"),
    [
        ("revers_kl", {}, r"divergence: 'revers_kl'.*did you mean 'reverse_kl'\?.*jsd"),
        ("Forward-KL", {}, "did you mean 'forward_kl'"),
        ("nothing_like_it", {}, "known: adaptive_kl, forward_kl, jeffreys, jsd"),
        ("jsd", {}, "beta: None.*jsd needs it"),
        ("jsd", {"bta": 0.5}, r"bta: 0.5.*jsd does not take it; did you mean 'beta'\?"),
        ("forward_kl", {"beta": 0.5}, "beta: 0.5.*forward_kl does not take it; none is taken here"),
        ("jsd", {"beta": 1.5}, r"beta: 1.5.*give a number in \[0, 1\]"),
        ("jsd", {"beta": -0.1, "normalized": True}, r"beta: -0.1.*give a number in \[0, 1\]"),
        ("jsd", {"beta": math.nan}, r"beta: nan.*give a number in \[0, 1\]"),
        ("jsd", {"beta": 0.0}, "beta: 0.0.*use forward_kl, or normalized=True"),
        ("jsd", {"beta": 1}, "beta: 1.*use reverse_kl, or normalized=True"),
    ],
)
def test_a_wrong_name_or_setting_is_refused_with_its_remedy(
    name: str, given_settings: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        D.get(name, **given_settings)


@every_divergence
def test_shapes_and_dtypes_are_checked_at_the_door(name: str, given_settings: dict[str, float]) -> None:
    divergence = D.get(name, **given_settings)
    with pytest.raises(SettingError, match=r"student_logits.shape: \(2, 4\)"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(SettingError, match=r"student_logits.shape: \(1, 3\)"):
        divergence(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(SettingError, match=r"student_logits.dtype: torch.int64"):
        divergence(torch.zeros(3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(SettingError, match=r"teacher_logits.shape"):
        divergence(torch.zeros(()), torch.zeros(()))
    assert divergence(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
