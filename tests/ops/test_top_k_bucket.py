"""Top k and a bucket: never above the whole, equal to it at k = V, and safe from the two known traps."""

import itertools

import pytest
import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops import divergence as D
from rlgkd.ops.top_k_bucket import KnownTokens, known_top_k_with_bucket, top_k_with_bucket

F_DIVERGENCES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.3}),
    ("total_variation", {}),
    ("skew_forward_kl", {"skew": 0.1}),
    ("skew_reverse_kl", {"skew": 0.1}),
    ("jeffreys", {}),
]


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (2 * torch.randn(20, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    return teacher, student


@pytest.mark.parametrize(("name", "settings"), F_DIVERGENCES)
def test_a_coarser_view_never_shows_more_and_all_tokens_show_everything(name: str, settings: dict[str, float]) -> None:
    teacher, student = logits()
    divergence = D.get(name, **settings)
    values = [divergence(*top_k_with_bucket(teacher, student, k)) for k in range(1, 10)]
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-12).all()
    torch.testing.assert_close(values[-1], divergence(teacher, student))


def test_both_sides_stay_distributions_and_the_gradient_is_that_of_finite_differences() -> None:
    teacher, student = logits()
    for side in top_k_with_bucket(teacher, student, 3):
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(20, dtype=torch.float64))
    few = student[:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: D.reverse_kl(*top_k_with_bucket(teacher[:3], s, 3)), few)


def test_draining_the_top_k_raises_the_divergence() -> None:
    """The trap of a reverse KL over the top k alone, which would call this student better."""
    teacher, student = torch.tensor([0.5, 0.4, 0.1]).log(), torch.tensor([0.5, 0.4, 0.1]).log()
    drained = torch.tensor([0.05, 0.04, 0.91]).log()
    assert (
        D.reverse_kl(*top_k_with_bucket(teacher, drained, 2))
        > D.reverse_kl(*top_k_with_bucket(teacher, student, 2)) + 1
    )
    naive = [(s.exp()[:2] * (s - teacher)[:2]).sum() for s in (student, drained)]
    assert naive[1] < naive[0]


def test_a_teacher_known_by_its_top_k_is_the_same_teacher() -> None:
    teacher, student = logits()
    known = teacher.log_softmax(-1).topk(4)
    for got, expected in zip(
        known_top_k_with_bucket(*known, student), top_k_with_bucket(teacher, student, 4), strict=True
    ):
        torch.testing.assert_close(got, expected)


def known_tokens(teacher: Tensor, k: int) -> KnownTokens:
    logp = teacher.log_softmax(-1)
    values, ids = logp.topk(k)
    return KnownTokens(values, ids, logp.scatter(-1, ids, -torch.inf).logsumexp(-1), logp[:, 0])


@pytest.mark.parametrize(("name", "settings"), F_DIVERGENCES)
def test_known_tokens_give_the_divergence_of_as_many_as_are_known_or_asked_for(
    name: str, settings: dict[str, float]
) -> None:
    teacher, student = logits()
    divergence = D.get(name, **settings)
    for known in (4, 8, 9):
        for k in (None, 3, 9):
            student_of = [student.clone().requires_grad_() for _ in range(2)]
            ours = divergence(*known_tokens(teacher, known).with_bucket(student_of[0], k))
            plain = divergence(*top_k_with_bucket(teacher, student_of[1], min(known, k or 9)))
            torch.testing.assert_close(ours, plain)
            gradients = [torch.autograd.grad(d.sum(), s)[0] for d, s in zip((ours, plain), student_of, strict=True)]
            torch.testing.assert_close(*gradients)


def test_a_row_of_which_fewer_tokens_are_known_has_the_divergence_of_these() -> None:
    teacher, student = logits()
    student.requires_grad_()
    few, nothing = known_tokens(teacher, 2), torch.full((20, 2), -torch.inf, dtype=torch.float64)
    logp, ids = torch.cat([few.logp_NK, nothing], 1), torch.cat([few.ids_NK, few.ids_NK], 1)
    filled = KnownTokens(logp, ids, few.rest_N, few.token_logp_N)
    for name, settings in F_DIVERGENCES:
        ours, plain = (D.get(name, **settings)(*known.with_bucket(student)) for known in (filled, few))
        torch.testing.assert_close(ours, plain)
        (gradient,) = torch.autograd.grad(ours.sum(), student)
        assert gradient.isfinite().all()


def test_rows_of_which_all_tokens_are_known_go_with_those_of_which_they_are_not() -> None:
    """As many tokens as there are were asked for, of a teacher that has more of them than the student."""
    teacher, student = logits()
    student.requires_grad_()
    all_known = known_tokens(teacher, 9)
    logp, ids = all_known.logp_NK.clone(), all_known.ids_NK.clone()
    mass = logp[0, -3:].logsumexp(-1)
    logp[0, -3:], ids[0, -3:] = -torch.inf, ids[0, 0]
    rest = all_known.rest_N.clone().masked_fill(torch.arange(20) == 0, mass.item())
    known = KnownTokens(logp, ids, rest, all_known.token_logp_N)
    fewer = top_k_with_bucket(teacher, student, 6)
    for name, settings in F_DIVERGENCES:
        ours = D.get(name, **settings)(*known.with_bucket(student))
        torch.testing.assert_close(ours[1:], D.get(name, **settings)(teacher, student)[1:])
        torch.testing.assert_close(ours[0], D.get(name, **settings)(*fewer)[0])
        (gradient,) = torch.autograd.grad(ours.sum(), student)
        assert gradient.isfinite().all()


def test_a_slice_of_known_tokens_is_that_of_each_part() -> None:
    known = known_tokens(logits()[0], 3)
    part = known[2:5].to(torch.device("cpu"))
    for name in ("logp_NK", "ids_NK", "rest_N", "token_logp_N"):
        assert torch.equal(getattr(part, name), getattr(known, name)[2:5])


def test_a_suppressed_token_in_the_bucket_gives_no_nan() -> None:
    teacher, student = torch.tensor([1.0, 0.5, -torch.inf]), torch.tensor([0.2, 0.1, -torch.inf], requires_grad=True)
    value = D.reverse_kl(*top_k_with_bucket(teacher, student, 1))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


def test_what_cannot_be_is_refused() -> None:
    teacher, student = logits()
    with pytest.raises(SettingError, match="k: 0"):
        top_k_with_bucket(teacher, student, 0)
    with pytest.raises(SettingError, match="sum above 1"):
        known_top_k_with_bucket(torch.tensor([-0.1, -0.2]), torch.tensor([0, 1]), student[0])
    with pytest.raises(SettingError, match=r"ids_K.shape: \(1,\)"):
        known_top_k_with_bucket(torch.tensor([-1.0, -2.0]), torch.tensor([0]), student[0])
