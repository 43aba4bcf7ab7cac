"""A map of vocabularies: a slow sum by hand, the bucket, and that the identity changes no divergence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlgkd.objective import Objective
from rlgkd.ops import divergence
from rlgkd.ops.vocabulary_map import MappedTokens, VocabularyMap


def map_of(pairs: dict[int, int], teacher_size: int, student_size: int) -> VocabularyMap:
    return VocabularyMap(
        teacher_ids_E=torch.tensor(sorted(pairs)),
        student_ids_E=torch.tensor([pairs[id_] for id_ in sorted(pairs)]),
        teacher_size=teacher_size,
        student_size=student_size,
    )


def logits(rows: int, size: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)


@given(st.dictionaries(st.integers(0, 8), st.integers(0, 5), min_size=1), st.integers(0, 99))
def test_each_token_has_the_mass_of_all_that_go_to_it_and_the_bucket_the_rest(pairs, seed) -> None:
    map, teacher_NV, student_NV = map_of(pairs, 9, 6), logits(3, 9, seed), logits(3, 6, seed + 100)
    teacher, student = map.with_bucket(*map.push(teacher_NV), student_NV)
    reached = sorted(set(pairs.values()))
    p_NV, q_NV = teacher_NV.softmax(-1), student_NV.softmax(-1)
    whole = len(reached) == 6
    mapped_N1 = p_NV[:, sorted(pairs)].sum(-1, keepdim=True) if whole else 1.0
    slow = [sum(p_NV[:, other] for other in pairs if pairs[other] == own) for own in reached]
    torch.testing.assert_close(teacher.exp()[:, : len(reached)], torch.stack(slow, -1) / mapped_N1)
    torch.testing.assert_close(student.exp()[:, : len(reached)], q_NV[:, reached])
    assert teacher.shape[1] == student.shape[1] == len(reached) + (not whole)
    for side in (student, *([teacher] if len(pairs) < 9 else [])):  # a bucket of nothing has a little instead
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jsd(0.5)", "skew_forward_kl(0.1)", "total_variation", "jeffreys"]
)
def test_through_the_map_of_one_tokenizer_every_divergence_and_its_gradient_are_the_plain_ones(name) -> None:
    teacher_NV = logits(16, 7, 0, 8.0).float()
    objective = Objective(alpha=1.0, divergence=name)
    mapped = MappedTokens(teacher_NV, torch.ones(16, dtype=torch.bool), map_of({n: n for n in range(7)}, 7, 7))
    found = []
    for teacher in (teacher_NV, mapped):
        student_NV = logits(16, 7, 1).float().requires_grad_()
        values_N = objective.pointwise(teacher, student_NV)
        found.append((values_N, torch.autograd.grad(values_N.sum(), student_NV)[0]))
    (values, slopes), (mapped_values, mapped_slopes) = found
    torch.testing.assert_close(mapped_values, values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mapped_slopes, slopes, atol=1e-5, rtol=1e-5)


def test_by_hand() -> None:
    """Teacher a, b, ab, <t> and student ab, a, c: a to a, ab to ab, b to a; c and <t> are the bucket."""
    map = map_of({0: 1, 1: 1, 2: 0}, 4, 3)
    teacher_NV = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    student_NV = torch.tensor([[0.5, 0.25, 0.25]]).log()
    teacher, student = map.with_bucket(*map.push(teacher_NV), student_NV)
    torch.testing.assert_close(teacher.exp(), torch.tensor([[0.3, 0.3, 0.4]]))
    torch.testing.assert_close(student.exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    mapped = MappedTokens(teacher_NV, torch.tensor([True]), map)
    assert mapped.unmapped_n.item() == pytest.approx(0.4)
    found = Objective(alpha=1.0, divergence="reverse_kl").pointwise(mapped, student_NV)
    assert found.item() == pytest.approx(divergence.reverse_kl(teacher, student).item())


def test_where_the_teacher_has_no_distribution_there_is_no_divergence_and_no_gradient() -> None:
    map, teacher_NV = map_of({0: 1, 1: 0, 2: 2}, 3, 4), logits(2, 3, 0)
    student_NV = logits(2, 4, 1).requires_grad_()
    mapped = MappedTokens(teacher_NV, torch.tensor([True, False]), map)
    values_N = Objective(alpha=1.0).pointwise(mapped, student_NV)
    (gradient_NV,) = torch.autograd.grad(values_N.sum(), student_NV)
    assert values_N[0] > 0 and values_N[1] == 0 and gradient_NV[0].any() and not gradient_NV[1].any()
    assert mapped.unmapped_n[1] == 0
    bounded = Objective(alpha=1.0, teacher_top_k=2).pointwise(mapped, student_NV)
    assert 0 < bounded[0] <= values_N[0] and bounded[1] == 0


def test_tokens_of_tiny_probability_keep_it_to_the_bit() -> None:
    """A sum of probabilities would have lost it: exp(-200) is no float32."""
    teacher_NV = torch.tensor([[0.0, -200.0]])
    logp_NM, unmapped_N = map_of({0: 0, 1: 1}, 2, 2).push(teacher_NV)
    assert torch.equal(logp_NM, teacher_NV.log_softmax(-1)) and unmapped_N.item() == -torch.inf
